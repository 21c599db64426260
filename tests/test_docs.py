"""The documentation says what the code says: methods, commands, numbers, the contract of the ONNX files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from demo_exports import demo_export
from PIL import Image

from structsam_export.catalogue import catalogue, markdown
from structsam_export.methods import METHODS, make_method, method_class

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "methods.md").read_text()


def test_the_readme_carries_the_generated_table():
    """After a change: python scripts/method_docs --table."""
    found = re.search(r"<!-- methods: .*? -->\n(.*?)\n<!-- end of methods -->", README, re.DOTALL)
    assert found
    assert found[1] == markdown(catalogue())


def test_the_catalogue_covers_the_registry():
    rows = {row["name"]: row for row in catalogue()}
    assert list(rows) == list(METHODS)
    for name, row in rows.items():
        assert list(row["macs_saved"]) == list(method_class(name).VARIANTS)
        assert all(0 < share < 1 for share in row["macs_saved"].values()) or name == "none"


def test_the_saved_macs_are_the_papers():
    """ViT-B, all layers, rate .5, from 486.416 G: ToMe 351.05, PiToMe 354.64, GradToMe 350.81, ALGM 350.76."""
    saved = {row["name"]: next(iter(row["macs_saved"].values())) for row in catalogue()}
    for name, published in {"tome": 351.05, "pitome": 354.64, "gradtome": 350.81, "algm": 350.76}.items():
        assert saved[name] == round(1 - published / 486.416, 4)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "none"])
def test_every_method_has_its_section_picture_and_limits(name):
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, f"docs/methods.md has no section '{name}'"
    picture = re.search(r"!\[.*?\]\((.*?)\)", section[1])
    assert picture
    with Image.open(ROOT / "docs" / picture[1]) as image:
        assert image.width > 500
    cls = method_class(name)
    for variant, most in cls.VARIANTS.items():
        assert f"{most:g}" in section[1]
        assert len(cls.VARIANTS) == 1 or f"`{variant}`" in section[1]
    assert "Limits:" in section[1]
    assert all(f"--param {parameter}" in section[1].replace("\n", " ") for parameter in cls.PARAMS)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "none"])
def test_a_method_says_that_nobody_verified_it(name):
    """What is ours, and what was not checked against the authors' code, stands where a reader of the code looks."""
    module = __import__(type(make_method(name)).__module__, fromlist=["__doc__"])
    assert "not verified against the author" in module.__doc__.replace("\n", " ")
    assert "Independent implementation" in module.__doc__.replace("\n", " ")


# ---- README: commands, paths, numbers


DOCS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
DOCS["scripts/README.md"] = (ROOT / "scripts" / "README.md").read_text()


def commands() -> list[str]:
    """Every call of structsam-export in the documentation, comments cut off."""
    lines = (line.strip() for text in DOCS.values() for line in text.splitlines())
    return sorted(
        {line.split(" #")[0].split(" > ")[0].strip() for line in lines if line.startswith("structsam-export ")}
    )


@pytest.mark.parametrize("line", commands())
def test_a_documented_command_is_one_the_program_takes(line, monkeypatch):
    """Parsed, not run: every option exists, and every value has its type."""
    from structsam_export.cli import cli

    words = shlex.split(line.replace("...", "").replace("[", "").replace("]", ""))[1:]
    name = words.pop(0) if words and words[0] in cli.commands else "export"
    parsed = cli.commands[name].make_context(name, words).params
    if parsed.get("method"):
        assert parsed["method"] in METHODS


@pytest.mark.parametrize("page", DOCS)
def test_paths_exist(page):
    for path in re.findall(r"`((?:docs|scripts|tests|structsam_export)/[\w./*-]*)`", DOCS[page]):
        assert list(ROOT.glob(path)), f"{page} mentions {path}"
    for path in re.findall(r"\]\(((?!http|#)[^)]+)\)", DOCS[page]):
        assert (ROOT / page).parent.joinpath(path).exists(), f"{page} links to {path}"
    for job in re.findall(r"python scripts/(\w+)", DOCS[page]):
        assert (ROOT / "scripts" / job / "__main__.py").exists(), f"{page} runs {job}"


def rows(text: str) -> dict[str, list[str]]:
    """Rows of all Markdown tables of a text, by their first cell."""
    cells = ([cell.strip(" *") for cell in line.strip("| ").split("|")] for line in text.splitlines() if "|" in line)
    return {first.replace("`", ""): rest for first, *rest in cells}


def test_gains_are_those_of_the_other_pages():
    """MACs and time of docs/performance.md, mIoU of docs/accuracy.md and, of MLP policies, docs/evaluation.md."""
    found = re.search(r"<!-- gains: .*?-->(.*?)<!-- end of gains -->", README, re.DOTALL)
    assert found
    fast, good = rows(DOCS["docs/performance.md"]), rows(DOCS["docs/accuracy.md"])
    policies = rows(DOCS["docs/evaluation.md"])
    gains = [(name, *values) for name, values in rows(found[1]).items() if re.search(r" 0\.\d", name)]
    assert len(gains) == 8
    for name, macs, time, lost in gains:
        method, *words = name.split()
        rate = next(word for word in words if word.startswith("0."))
        variant = next((word for word in words if word in method_class(method).VARIANTS), None)
        row = fast[name if name in fast else " ".join((method, variant))]
        assert (macs, time) == (row[1], row[5]), name
        if "--mlp" in name:
            policy = words[words.index("--mlp") + 1]
            loss = policies[policy + (", density 0.5" if policy.startswith("res") else "")][0]
        else:
            variant = variant or next(iter(method_class(method).VARIANTS))
            loss = good[f"{method}-{variant}-r{100 * float(rate):g}"][3].split()[0]
        assert loss == f"-{lost}", name


def test_the_loss_without_a_policy_is_the_sweep_s():
    sets = rows(DOCS["docs/accuracy.md"])["structsam-cell-r50"]
    assert rows(DOCS["docs/evaluation.md"])["none"] == [sets[3].split()[0], *sets[5:]]


def test_the_table_of_speeds_is_the_recorded_runs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from latency_against_macs.rows import rows_of, table

    folder = ROOT / "docs" / "benchmarks" / "vit_b_ort_cpu"
    runs = [folder / "policies.json", *sorted(folder.glob("methods-*.json"))]
    recorded = table(list({row["name"]: row for path in runs for row in rows_of(path)}.values())).splitlines()[2:]
    assert len(recorded) == 22
    for line in recorded:  # names are given as options on the page
        figures = line.split("|", 2)[2]
        assert figures in DOCS["docs/performance.md"], line


def test_exit_codes_are_the_program_s():
    from structsam_export import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    codes = {str(kind.exit_code) for kind in kinds} | {"0", str(errors.INTERRUPTED)}
    assert codes == {code for code in rows(README) if code.isdigit()}


def test_gates_are_the_program_s():
    from structsam_export.validate.parity import GATES

    shown = rows(DOCS["docs/report.md"])
    for precision, gates in GATES.items():
        assert [float(value) for value in shown[precision]] == list(gates.values())


def test_every_backend_runner_and_form_is_described():
    from structsam_export.backends import BACKENDS, backend
    from structsam_export.backends.openvino import PRECISIONS
    from structsam_export.benchmark import runners
    from structsam_export.rewrite import FORMS

    page, table = DOCS["docs/command.md"], rows(DOCS["docs/command.md"])
    for name in BACKENDS:
        assert table[name][-1].strip("`") == backend(name).INSTALL
    assert [word.strip("`") for word in table["openvino"][0].split(", ")] == list(PRECISIONS)
    assert all(f"{form}`" in page for form in FORMS)
    assert all(f"`{runner}`" in DOCS["docs/performance.md"] for runner in runners())


def test_every_pack_and_its_options_are_described():
    from structsam_export.packs import PACKS, options_of_packs, pack_class

    page, table = DOCS["docs/packs.md"], rows(DOCS["docs/packs.md"])
    for name in PACKS:
        assert table[name][0], name
        options = pack_class(name).OPTIONS.items()
        assert all(f"`--{option} {choice}`" in page for option, about in options for choice in about.choices)
    named = set(re.findall(r"`--(\w+) [\w-]+`", page))
    assert named <= {*options_of_packs(), "as", "model", "form"}


def test_engines_are_named_as_backends_name_them():
    from structsam_export.backends import BACKENDS

    for page in ("README.md", "docs/command.md"):
        assert set(re.findall(r"`encoder\.([a-z-]+)-[\d<]", DOCS[page])) <= set(BACKENDS)


def test_every_extra_is_described():
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r"\[project\.optional-dependencies\]\n(.*?)\n\n", text, re.DOTALL)
    assert found
    extras = set(re.findall(r"^([\w-]+) = \[", found[1], re.MULTILINE)) - {"dev"}
    assert extras == {e for e in extras if any(f"`{e}`" in t or f"export[{e}]" in t for t in DOCS.values())}


def test_registries_of_the_design_are_the_package_s():
    """ "Rooms": every kind has its registry and its tests."""
    from importlib import import_module

    pattern = r"^\| \w[\w ]* \| .* \| `(?:([\w.]+)\.)([A-Z]+)`.* \| `(tests/\w+)"
    kinds = re.findall(pattern, DOCS["docs/design.md"], re.MULTILINE)
    assert [kind for kind, *_ in kinds] == ["methods", "hosts", "models.sources", "backends", "packs", "rewrite"]
    for kind, registry, tests in kinds:
        assert getattr(import_module(f"structsam_export.{kind}"), registry)
        assert list((ROOT / tests).glob("test_*.py"))


def test_the_readme_fits_on_three_screens_and_has_a_picture():
    assert len(README.splitlines()) <= 150
    picture = ROOT / "docs" / "images" / "overview.jpg"
    assert picture.stat().st_size <= 300_000
    with Image.open(picture) as image:
        assert image.width == 1800


# ---- The contract of the ONNX files


@pytest.fixture(scope="module")
def exported():
    """An export of the demo model: its folder, and the model itself, patched alike."""
    from structsam_export.methods import make_method
    from structsam_export.models import load_model
    from structsam_export.patch import patched

    sam = load_model("demo").sam
    with patched(sam.image_encoder, make_method("structsam", 0.5), range(8)):
        yield demo_export(), sam


def test_tensors_are_those_of_the_table(exported):
    import onnxruntime as ort

    types = {"tensor(float)": "float32", "tensor(int64)": "int64"}
    shown = re.findall(r"^\| (?:encoder|decoder|) ?\| (?:-> )?`(\w+)` \| (\w+) \(([^)]*)\)", README, re.MULTILINE)
    sizes, found = {"S": 512, "h": 32, "w": 32, "4h": 128, "4w": 128, "B": 1}, []
    for part in ("encoder", "decoder"):
        session = ort.InferenceSession(str(exported[0] / f"{part}.onnx"))
        found += [(t.name, types[t.type], t.shape) for t in (*session.get_inputs(), *session.get_outputs())]
    assert [(name, kind) for name, kind, _ in shown] == [(name, kind) for name, kind, _ in found]
    for (name, _, text), (*_, shape) in zip(shown, found):
        expected = [
            int(sizes.get(size, size)) if sizes.get(size, size) not in ("P", "K") else size for size in text.split(", ")
        ]
        assert expected == [size if isinstance(size, int) else size[-1] for size in shape], name


def test_the_way_from_a_photo_to_a_mask(exported):
    """The code of docs/onnx.md draws the masks of `SamPredictor`; the padding point is not neutral."""
    from segment_anything import SamPredictor

    folder, sam = exported
    path = ROOT / "structsam_export" / "assets" / "photos" / "coins.jpg"
    box, point = (338, 16, 381, 62), (45, 55)
    code = re.search(r"```python\n(.*?)```", DOCS["docs/onnx.md"], re.DOTALL)
    assert code
    names = {"folder": folder, "path": path, "box": box, "point": point}
    exec(code[1], names)
    predictor = SamPredictor(sam)
    predictor.set_image(np.asarray(names["photo"]))
    wanted = (
        predictor.predict(box=np.array(box), multimask_output=False)[0][0],
        predictor.predict(np.array([point]), np.array([1]), multimask_output=False)[0][0],
    )
    for mask, true in zip(names["masks"], wanted):
        assert (mask & true).sum() / (mask | true).sum() > 0.99
    feeds = {
        "image_embeddings": names["embedding"],
        "mask_input": np.zeros((1, 1, 128, 128), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    }
    drawn = {}
    for pads in (0, 1, 2):
        coords = np.float32([[point, *[(0, 0)] * pads]]) * [*names["scale"]]
        prompt = {"point_coords": coords.astype(np.float32), "point_labels": np.int64([[1, *[-1] * pads]])}
        drawn[pads] = names["decoder"].run(["low_res_masks"], feeds | prompt)[0][0, 0]
    assert np.allclose(drawn[1], names["logits"][1, 0], atol=1e-4)
    assert abs(drawn[0] - drawn[1]).max() > 0.1
    assert abs(drawn[2] - drawn[1]).max() > 0.1
