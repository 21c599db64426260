"""scripts/build_plugins: kernels compiled without a GPU for some SMs (all of them: -m slow)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "plugins")]

from build_plugins import compiling  # noqa: E402
from build_plugins.build import BuildError, build  # noqa: E402
from build_plugins.compiling import strip_scratch  # noqa: E402
from build_plugins.targets import CUDA, FIRST, SMS, ptx_version  # noqa: E402
from kernel_launch import PLUGINS, part, pieces, power_of_two  # noqa: E402

SOME = {
    "relpos_attention": ["window merged"],
    "merge_plan": ["window"],
    "token_energy": ["ViT-H"],
    "token_merge": ["ViT-H window"],
    "token_unmerge": ["ViT-B window"],
}


@pytest.fixture(scope="module", autouse=True)
def cache_of_triton(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A kernel of every plugin for Orin, and what SM 75 gets: folder and rows."""
    folder = tmp_path_factory.mktemp("kernels")
    rows = [row for name in PLUGINS for row in build(folder, [name], SOME[name], [87], "12.6")]
    rows += build(folder, ["relpos_attention", "merge_plan"], ["window merged", "window"], [75])
    return folder, rows


def test_every_plugin_compiles_without_spills(made):
    folder, rows = made
    orin = [row for row in rows if row["sm"] == 87]
    assert [row["plugin"] for row in orin] == list(PLUGINS)
    for row in orin:
        assert row["refused"] is None and row["spills"] == 0
        assert row["shared"] <= 48 * 1024 and 0 < row["registers"] <= 255
        ptx = (folder / f"{row['files']}.ptx").read_text()
        assert ".version 8.5" in ptx and ".target sm_87" in ptx
        assert (folder / f"{row['files']}.cubin").read_bytes()[:4] == b"\x7fELF"


def test_entries_take_what_the_launch_gives_and_nothing_else(made):
    """Inputs, sizes, outputs: no scratch pointers."""
    folder, rows = made
    for row in rows:
        if row["refused"] is None:
            head = (folder / f"{row['files']}.ptx").read_text().partition("\n)\n")[0]
            assert head.count(".param ") == len(row["arguments"]) == row["parameters"]
            assert head.count(".param .u64") == sum(kind.startswith("*") for kind in row["arguments"].values())


def test_attention_has_tensor_core_code(made):
    folder, rows = made
    row = next(row for row in rows if row["plugin"] == "relpos_attention" and row["sm"] == 87)
    assert "mma.sync" in (folder / f"{row['files']}.ptx").read_text()


def test_attention_on_sm_75_is_refused_with_the_reason(made):
    folder, rows = made
    attention, plan = (row for row in rows if row["sm"] == 75)
    assert "no tensor-core code for SM 75" in attention["refused"] and attention["expected"]
    assert not list(folder.glob("relpos_attention/*.sm75.*"))
    assert plan["refused"] is None
    assert (folder / f"{plan['files']}.cubin").exists()
    page = (folder / "kernels.md").read_text()
    assert "| relpos_attention | window merged | 75 | refused: Triton has no tensor-core code" in page


def test_what_has_not_changed_is_not_compiled_again(made, monkeypatch):
    folder, rows = made
    files = [p for p in folder.rglob("*.cubin") if "merge_plan" in str(p)]
    before = [p.stat().st_mtime_ns for p in files]
    (row,) = build(folder, ["merge_plan"], ["window"], [87], "12.6")
    assert row["compiled"] is False and row["registers"] == next(
        r["registers"] for r in rows if r["plugin"] == "merge_plan" and r["sm"] == 87
    )
    assert [p.stat().st_mtime_ns for p in files] == before
    # Other PTX is another kernel, and a file that is gone is made again.
    assert build(folder, ["merge_plan"], ["window"], [87], "12.2")[0]["compiled"] is True
    (folder / f"{row['files']}.cubin").unlink()
    assert build(folder, ["merge_plan"], ["window"], [87], "12.2")[0]["compiled"] is True
    kept = json.loads((folder / "kernels.json").read_text())
    assert len({r["files"] for r in kept}) == len(kept) == len(rows)


def test_too_much_shared_memory_is_refused_and_nothing_stays(made, tmp_path):
    build(tmp_path, ["relpos_attention"], ["window merged"], [87], "12.6")
    assert len(list(tmp_path.glob("relpos_attention/*"))) == 2
    (row,) = build(tmp_path, ["relpos_attention"], ["window merged"], [87], "12.6", shared=8)
    assert row["refused"].startswith("refused: needs ") and not row["expected"]
    assert not list(tmp_path.glob("relpos_attention/*"))


def test_what_spills_is_refused(tmp_path, monkeypatch):
    """Attention with tiles that cannot fit into the registers of one warp, and are compiled in that way alone."""
    from build_plugins import build as module

    launch = part("relpos_attention", "kernel").launch
    large = launch(1, 64, 1, 64, (14, 14), "float16", "none", tile=(64, 32), warps=1)
    monkeypatch.setattr(module, "builds_of", lambda name: iter([(name, "large", large)]))
    monkeypatch.setattr(module, "fitting", lambda way, sm, version, shared: (compiling.compiled(way, sm, version), way))
    (row,) = build(tmp_path, ["relpos_attention"], None, [87], None, 160)
    assert row["refused"].startswith("refused: spills ") and row["spills"] > 0
    assert not list(tmp_path.glob("relpos_attention/*"))


@pytest.mark.parametrize(
    ("needs", "way"),
    [({}, (2, 4)), ({(2, 4): (8, 0)}, (1, 4)), ({(2, 4): (0, 99), (1, 4): (8, 0)}, (1, 8))],
)
def test_the_first_way_that_fits_is_taken(monkeypatch, needs, way):
    """As it is, without loads ahead, with twice the warps; `needs`: (stages, warps) -> spills, shared memory."""

    def fake(launch, sm, version):
        spills, shared = needs.get((launch.stages, launch.warps), (0, 0))
        return compiling.Compiled("", b"", "", "", 0, 0, spills, 0, shared)

    monkeypatch.setattr(compiling, "compiled", fake)
    launch = part("merge_plan", "kernel").launch(1, (8, 8), (8, 8), 4)
    taken = compiling.fitting(launch, 87, 85, 48)[1]
    assert (taken.stages, taken.warps) == way


def test_scratch_parameters_go_unless_they_are_used():
    body = "\n)\n{\n ld.param.b64 %r, [f_param_0];\n}\n"
    ptx = ".entry f(\n\t.param .u64 .ptr f_param_0,\n\t.param .u64 .ptr f_param_1" + body
    assert strip_scratch(ptx, 1) == ".entry f(\n\t.param .u64 .ptr f_param_0" + body
    assert strip_scratch(ptx, 2) == ptx
    with pytest.raises(ValueError, match="f_param_1 is used"):
        strip_scratch(ptx.replace("[f_param_0]", "[f_param_1]"), 1)


def test_a_cuda_too_old_for_an_sm_is_refused(tmp_path):
    assert ptx_version(87, "12.6") == 85
    assert [sm for sm in SMS if isinstance(ptx_version(sm, "12.6"), str)] == [100, 110, 120]
    assert all(isinstance(ptx_version(sm, "13.0"), int) for sm in SMS) and set(CUDA.values()) >= {85, 90}
    (row,) = build(tmp_path, ["merge_plan"], ["window"], [110], "12.6")
    assert row["refused"] == "refused: CUDA 12.6 does not know SM 110"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--plugins", "nothing"], 2, "no plugin 'nothing'"),
        (["--sms", "61"], 2, "no SM '61'"),
        (["--builds", "nothing"], 2, "No build is named nothing"),
        (["--output", "/dev/null/kernels", "--plugins", "merge_plan", "--sms", "75"], 4, "Cannot write"),
    ],
)
def test_bad_requests_say_what_to_do(tmp_path, arguments, code, message):
    command = [sys.executable, str(ROOT / "scripts" / "build_plugins"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_interpreted_kernels_are_not_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BuildError, match="Unset it"):
        build(tmp_path, ["merge_plan"], None, [87])


@pytest.mark.parametrize(
    ("dim", "parts"), [(64, (64, 0)), (80, (64, 16)), (20, (16, 16)), (7, (16, 0)), (96, (64, 32))]
)
def test_heads_are_cut_into_powers_of_two(dim, parts):
    assert part("relpos_attention", "kernel").head_parts(dim) == parts


def test_sizes():
    assert [pieces(n, 4) for n in (1, 4, 5)] == [1, 1, 2]
    assert [power_of_two(n) for n in (1, 3, 64, 65)] == [1, 4, 64, 128]


def test_a_kernel_that_does_not_compile_does_not_stop_the_others(tmp_path, monkeypatch):
    from build_plugins import build as module

    def broken(launch, sm, version, shared):
        raise RuntimeError("ptxas: no | such thing\nmore")

    monkeypatch.setattr(module, "fitting", broken)
    rows = build(tmp_path, ["merge_plan"], None, [87])
    assert [row["refused"] for row in rows] == ["refused: does not compile: ptxas: no / such thing"] * 2
    assert not any(row["expected"] for row in rows)
    assert "does not compile" in (tmp_path / "kernels.md").read_text()


@pytest.mark.slow
def test_every_kernel_compiles_for_every_sm(tmp_path):
    rows = build(tmp_path, PLUGINS, None, list(SMS))
    refused = {(row["plugin"], row["sm"]) for row in rows if row["refused"]}
    assert refused == {(name, sm) for name, (first, _) in FIRST.items() for sm in SMS if sm < first}
    assert {row["spills"] for row in rows if not row["refused"]} == {0}
