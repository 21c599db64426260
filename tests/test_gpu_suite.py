"""scripts/gpu_suite as far as it goes without a GPU: the dry run, steps that fail, budgets, wheels, the report."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from shared_traces import key_of
from trace_cache import cached_file

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from gpu_suite import NOT_MEASURED, Options, wheels  # noqa: E402
from gpu_suite.cli import BACKENDS  # noqa: E402
from gpu_suite.eager import fused_attention  # noqa: E402
from gpu_suite.engines import native_errors  # noqa: E402
from gpu_suite.report import markdown  # noqa: E402
from gpu_suite.steps import Step, plan  # noqa: E402
from gpu_suite.suite import NO_GPU, NO_TIME, Suite  # noqa: E402

from structsam_export.backends import backend  # noqa: E402

QUICK = "gpu_suite.conditions:gpu_state"


def suite_in(folder: Path, budget: float = 60, tell=lambda _: None, **options) -> Suite:
    return Suite(Options(str(folder / "work"), **options), folder, budget, tell)


def statuses(report: dict) -> dict[str, str]:
    return {row["name"]: row["status"] for row in report["steps"]}


@pytest.fixture(scope="module")
def dry():
    """One dry run of the command itself, one method; made once for all workers."""
    sources = [*SCRIPTS.joinpath("gpu_suite").glob("*.py"), *SCRIPTS.parent.joinpath("plugins").rglob("*.py")]
    libraries = [version(name) for name in ("triton", "onnxruntime", "polygraphy") if find_spec(name)]

    def make(output):
        command = [sys.executable, str(SCRIPTS / "gpu_suite"), "--dry-run", "--methods", "structsam,tome"]
        command += ["--budget", "1500", "--output", str(output)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        # What failed is not kept for the next run.
        assert set(statuses(json.loads((output / "gpu_suite.json").read_text())).values()) == {"ok", NOT_MEASURED}

    output = cached_file(key_of("gpu_suite", libraries, *(path.read_text() for path in sorted(sources))), make)
    return json.loads((output / "gpu_suite.json").read_text()), (output / "gpu_suite.md").read_text()


@pytest.mark.slow
def test_a_dry_run_does_what_needs_no_gpu(dry):
    report, _ = dry
    found = statuses(report)
    assert set(found.values()) == {"ok", NOT_MEASURED}, found
    assert report["dry_run"] is True
    assert report["measured_on_gpu"] is False
    assert report["options"]["models"] == ["demo"]
    assert report["options"]["methods"] == ["structsam"]  # the first merging one
    done = [name for name, status in found.items() if status == "ok"]
    assert {"conditions", "export demo structsam", "fp16 demo structsam", "reference demo structsam"} <= set(done)
    if backend("tensorrt-rtx").installed():
        assert "build demo structsam merged fp16 tensorrt-rtx" in done
        assert found["run demo structsam merged fp16 tensorrt-rtx CUDA graph"] == NOT_MEASURED
        assert found["build demo structsam merged fp32 tensorrt-rtx"] == NOT_MEASURED


@pytest.mark.skipif(not backend("tensorrt-rtx").installed(), reason="needs TensorRT-RTX")
@pytest.mark.slow
def test_a_dry_run_builds_an_engine_with_plugins(dry):
    """Every operator that was put into the graph is a layer of the engine that a plugin computes."""
    rows = {row["name"]: row["result"] for row in dry[0]["steps"]}
    put_in = rows["plugins demo structsam fp16 tensorrt-rtx"]
    engine = rows["build demo structsam merged-plugins fp16 tensorrt-rtx"]
    assert engine["plugin_layers"] == sum(put_in["counts"].values()) > 10
    assert put_in["nodes"] < put_in["nodes_before"] / 2
    assert "run demo structsam merged-plugins fp16 tensorrt-rtx" in rows


def test_a_run_without_a_library_has_no_engines_with_plugins(tmp_path):
    """And with one, library and kernels are packed as `build --plugin-library` packs them."""
    from gpu_suite import fused

    given = Options(str(tmp_path)).to_dict()
    with pytest.raises(ValueError, match=r"plugins/README\.md"):
        fused.library(given)
    (tmp_path / "libours.so").write_bytes(b"\x7fELF")
    found = fused.library(given | {"plugin_library": str(tmp_path / "libours.so")})
    assert found == {"registered": "libours.so"} and (tmp_path / "plugins.zip").exists()


@pytest.mark.slow
def test_a_dry_run_measures_onnx_runtime_and_makes_nothing_up(dry):
    report, _ = dry
    rows = {row["name"]: row["result"] for row in report["steps"]}
    measured = [name for name, result in rows.items() if result and "latency" in result]
    assert measured == ["onnxruntime demo structsam merged fp32"]
    result = rows[measured[0]]
    assert result["latency"]["n"] == 2
    assert result["parity"]["max_rel"] < 1e-4
    assert result["parity"]["mask_iou_mean"] > 0.9999


@pytest.mark.slow
def test_the_page_has_the_conditions_on_top_and_says_what_was_not_measured(dry):
    report, page = dry
    assert page.index("Dry run: not measured on GPU") < page.index("## Conditions") < page.index("## demo")
    assert "- GPU: not measured on GPU" in page
    conditions = next(row["result"] for row in report["steps"] if row["name"] == "conditions")
    for fact in ("date", "cpu", "python"):
        assert f"- {fact}: {conditions[fact]}" in page
    assert f"- torch {torch.__version__}" in page
    assert "| eager demo none stock fp32 | 0.0 | not measured on GPU |" in page


@pytest.mark.slow
def test_a_dry_run_interprets_kernels_and_times_none(dry):
    """Equality with the references, of one attention and one layer, and of what they are timed beside on a GPU."""
    report, page = dry
    rows = {row["name"]: row for row in report["steps"] if row["name"].startswith("kernel ")}
    attention, merging = rows.values()
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert attention["result"]["max_rel"]["relpos_attention"] < 1e-6
    assert max(attention["result"]["rivals_max_rel"].values()) < 1e-6
    assert set(attention["result"]["rivals_max_rel"]) == {"dense bias", "SDPA folded"}
    assert set(merging["result"]["max_rel"]) == {"token_energy", "token_merge", "token_unmerge"}
    assert merging["result"]["merge_plan"] == "exactly equal"
    for row in rows.values():
        assert row["result"]["times"] == NOT_MEASURED
        assert f"| {row['name'].removeprefix('kernel ')} | all |" in page
    assert page.index("## Kernels of plugins/") < page.index("## Steps")


def test_a_kernel_that_differs_fails_its_step():
    from gpu_suite.kernels import checked

    assert checked({"a": 1e-6}, "float32")["max_rel"] == {"a": 1e-6}
    for wrong in (1e-3, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="differs from the reference"):
            checked({"a": 1e-6, "b": wrong}, "float32")


def test_times_of_kernels_have_a_row_each(tmp_path):
    """The numbers are invented."""
    suite = suite_in(tmp_path)
    times = {"kernel": {"p50": 0.1, "p90": 0.2, "p99": 0.3, "n": 50}, "FlexAttention": {"failed": "Error: a | b"}}
    result = {"max_rel": {"relpos_attention": 1e-4}, "device": "cuda", "times": times, "launches": 4}
    suite.record("kernel attention x float16", "ok", 1.0, result, {"case": "x"})
    page = markdown(suite.report())
    assert suite.report()["measured_on_gpu"] is True
    assert "| attention x float16 | kernel | 1.0e-04 on cuda | 0.1000 | 0.2000 | 0.3000 | 4 |" in page
    assert "| attention x float16 | FlexAttention | 1.0e-04 on cuda | Error: a / b | - | - | 4 |" in page


def test_what_is_timed_beside_the_kernel_is_the_same_attention():
    """FlexAttention, too; uncompiled here."""
    from gpu_suite import kernels
    from torch.nn.attention.flex_attention import flex_attention

    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 9, 8, generator=g) for _ in range(3))
    rel, pos = (
        torch.randn(2, 9, 2, 14, generator=g),
        torch.stack([torch.randperm(15, generator=g)[:9] for _ in range(2)]),
    )
    calls = kernels.rivals(q, k, v, rel, pos, 2, (3, 5))
    reference = kernels.triton_part("relpos_attention", "reference").reference
    want = reference(*(x.numpy() for x in (q, k, v, rel, pos)), 2, (3, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "flex_attention", lambda: flex_attention)
        for name in ("dense bias", "SDPA folded", "FlexAttention"):
            assert kernels.error(calls[name](), want) < 1e-6, name
    no_bias = reference(*(x.numpy() for x in (q, k, v, 0 * rel, pos)), 2, (3, 5))
    assert kernels.error(calls["SDPA without bias"](), no_bias) < 1e-6


def test_steps_survive_each_others_failures(tmp_path):
    steps = [
        Step("first", QUICK),
        Step("raises", "json:loads", {"s": "{"}),
        Step("dies", "os:abort"),
        Step("is missing", "gpu_suite.conditions:nothing"),
        Step("needs", QUICK, needs=("raises",)),
        Step("last", QUICK),
    ]
    found = statuses(suite_in(tmp_path).run(steps))
    assert found["first"] == found["last"] == "ok"
    assert found["raises"].startswith("failed: json.decoder.JSONDecodeError: Expecting property name")
    assert found["dies"].startswith("failed: the process died with code -6")
    assert found["is missing"].startswith("failed: AttributeError")
    assert found["needs"] == "skipped: needs 'raises'"
    assert "Traceback" in (tmp_path / "gpu_suite.log").read_text()


def test_a_budget_skips_what_does_not_fit_and_stops_what_hangs(tmp_path):
    steps = [
        Step("fits", QUICK),
        Step("too long", QUICK, seconds=1000),
        Step("hangs", "signal:pause"),
        Step("too late", QUICK),
    ]
    report = suite_in(tmp_path, budget=4).run(steps)
    found = statuses(report)
    assert found["fits"] == "ok"
    assert found["too long"] == found["too late"] == NO_TIME
    assert found["hangs"].startswith("failed: stopped after")
    assert NO_TIME in (tmp_path / "gpu_suite.md").read_text()


def test_a_kill_loses_only_the_step_it_hits(tmp_path):
    def tell(line: str) -> None:
        if line.startswith("second ..."):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        suite_in(tmp_path, tell=tell).run([Step("first", QUICK), Step("second", QUICK)])
    assert statuses(json.loads((tmp_path / "gpu_suite.json").read_text())) == {"first": "ok"}
    assert "| first |" in (tmp_path / "gpu_suite.md").read_text()


def test_without_a_gpu_a_real_run_stops_after_the_conditions(tmp_path):
    suite = suite_in(tmp_path)
    suite.record("conditions", "ok", 0.0, {"gpu": None, "nvidia_smi": {}, "versions": {}}, {})
    assert statuses(suite.run([Step("any", QUICK)]))["any"] == NO_GPU
    assert "**Not measured on GPU**" in (tmp_path / "gpu_suite.md").read_text()


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_plan_names_every_step_once_and_needs_only_earlier_ones(tmp_path, dry_run):
    steps = plan(Options(str(tmp_path), ("demo", "vit_b"), dry_run=dry_run), ["tensorrt-rtx", "tensorrt"])
    seen: set[str] = set()
    for step in steps:
        assert step.name not in seen
        assert set(step.needs) <= seen
        seen.add(step.name)
        json.dumps(step.arguments)
    assert steps[0].name == "conditions"
    assert "run vit_b none plain fp16 tensorrt-rtx CUDA graph" in seen
    assert "run vit_b structsam merged fp32 tensorrt" in seen
    assert {
        f"run vit_b {form} fp16 tensorrt" for form in ("none rewritten-plugins", "structsam merged-plugins")
    } <= seen
    assert {f"onnxruntime vit_b structsam merged {precision}" for precision in ("fp32", "fp16")} <= seen
    assert "onnxruntime-tensorrt vit_b structsam merged fp32" in seen


def test_backends_are_known_by_the_modules_the_package_imports():
    """The command looks for them before anything of the package can be imported."""
    assert {name: backend(name).MODULE for name in BACKENDS} == BACKENDS


def test_ratios_are_to_the_plain_engine_of_the_same_runner_and_to_stock(tmp_path):
    """The numbers are invented, to check the arithmetic."""
    suite = suite_in(tmp_path)

    def row(name: str, p50: float, **arguments) -> None:
        latency = {"p50": p50, "p90": p50, "p99": p50, "n": 50, "copy_in": {"p50": 0.5}, "copy_out": {"p50": 0.25}}
        suite.record(name, "ok", 1.0, {"latency": latency, "parity": {"finite": False, "photos": 1}}, arguments)

    row("eager demo none stock fp16", 16.0, model="demo", method="none", precision="fp16")
    for graph in ("", " CUDA graph"):
        plain, merged = (8.0, 4.0) if graph else (10.0, 6.0)
        for method, form, p50 in (("none", "plain", plain), ("structsam", "merged", merged)):
            given = {"model": "demo", "method": method, "form": form, "precision": "fp16"}
            row(f"run demo {method} {form} fp16 tensorrt-rtx{graph}", p50, **given)
    page = markdown(suite.report())
    assert "| structsam merged fp16 tensorrt-rtx | 6.000 | 6.000 | 6.000 | 50 | 0.500 | 0.250 | 0.600 | 0.375 |" in page
    assert "| structsam merged fp16 tensorrt-rtx CUDA graph | 4.000 |" in page
    assert "| 0.500 | 0.250 | 0.500 | 0.250 |" in page
    assert "NaN or infinity" in page
    assert suite.report()["measured_on_gpu"] is True


def test_wheels_are_split_and_joined_again(tmp_path):
    large, small = bytes(range(256)) * 10, b"small"
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "large-1-py3-none-any.whl").write_bytes(large)
    (folder / "small-1-py3-none-any.whl").write_bytes(small)
    parts = wheels.split(folder, limit=200)
    assert len(parts) == 13  # more than ten: their order is that of numbers, not of text
    assert all(p.stat().st_size <= 200 for p in parts)
    assert not (folder / "large-1-py3-none-any.whl").exists()
    joined = wheels.join(folder, tmp_path / "joined")
    assert [p.name for p in joined] == ["large-1-py3-none-any.whl"]
    assert joined[0].read_bytes() == large
    parts[4].unlink()
    with pytest.raises(ValueError, match="lacks part 4"):
        wheels.join(folder, tmp_path / "joined")


def test_wheels_are_installed_without_an_index_and_if_need_be_without_dependencies(tmp_path, monkeypatch):
    (tmp_path / "a-1-py3-none-any.whl.part0").write_bytes(b"wheel")
    calls = []

    def pip(command, **_):
        calls.append(command)
        refused = "--no-deps" not in command
        return subprocess.CompletedProcess(command, int(refused), "", "ERROR: no matching numpy" if refused else "")

    monkeypatch.setattr(subprocess, "run", pip)
    found = wheels.install(tmp_path, tmp_path / "joined")
    assert found == {"wheels": ["a-1-py3-none-any.whl"], "dependencies": False, "pip": "ERROR: no matching numpy"}
    assert all("--no-index" in command and str(tmp_path) in command for command in calls)
    assert (tmp_path / "joined" / "a-1-py3-none-any.whl").read_bytes() == b"wheel"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="no wheels"):
        wheels.install(empty, tmp_path / "joined")


def test_the_fused_reference_is_the_stock_encoder(encoder):
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    stock = encoder(image)
    with fused_attention(encoder):
        fused = encoder(image)
    assert torch.allclose(stock, fused, atol=1e-5)
    assert torch.equal(stock, encoder(image))


@pytest.mark.skipif(not backend("tensorrt-rtx").installed(), reason="needs TensorRT-RTX")
def test_a_failed_build_says_what_tensorrt_said(tmp_path):
    import onnx
    from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

    ends = make_tensor_value_info("x", 1, [4, 4]), make_tensor_value_info("y", 7, [2, None])
    graph = make_graph([make_node("NonZero", ["x"], ["y"])], "bad", [ends[0]], [ends[1]])
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=10), tmp_path / "bad.onnx")
    with pytest.raises(RuntimeError, match="NonZero"), native_errors():
        backend("tensorrt-rtx").build(tmp_path / "bad.onnx", tmp_path, "encoder", "sm86", {})
