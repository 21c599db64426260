"""Runs killed at every change of a folder's entries: nothing looks finished that is not, nothing is lost.

After each kill the folder is looked at as it lies there, then the same command is run again.
"""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from structsam_export.drafts import put_back

TRACED = ["encoder.raw.onnx", "decoder.raw.onnx"]
REWRITTEN = ["encoder.onnx", "decoder.onnx"]
EXPORTED = [*TRACED, *REWRITTEN, "report.json"]
NEVER = 1000
DEFAULT = {0: 5, 2: 10, 6: 6}  # case -> its kill by default


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def snapshot(folder, but=()):
    """Everything in a folder, but what is below names in `but`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not any(name == b or name.startswith(f"{b}/") for b in but):
            found[name] = digest(path) if path.is_file() else "folder"
    return found


def truths(folder):
    """What is listed, after a check that the manifest of a folder says nothing that is not so; None: no manifest."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    data = json.loads(path.read_text())
    for name, entry in data["files"].items():
        assert (folder / name).is_file(), f"{name} is listed but missing"
        assert digest(folder / name) == entry["sha256"], f"{name} is listed with another hash"
    for engine in data["engines"]:
        assert engine["file"] in data["files"]
    if data["results"].get("passed") is not None:
        assert "report.json" in data["files"] and json.loads((folder / "report.json").read_text())["passed"] is True
        others = {n: e["sha256"] for n, e in data["files"].items() if n not in ("report.json", "report.html")}
        assert data["results"]["judged"] == others
    return set(data["files"])


class Case:
    """One command on a folder in some state, the faults it is run with, and what has to be listed then."""

    def __init__(self, name, arguments, start=None, faults=None, finished=(), kept=()):
        self.name, self.arguments, self.start = name, arguments, start
        self.faults, self.finished, self.kept = faults or {}, set(finished), set(kept)


@pytest.fixture(scope="module")
def made(server, tiny, tmp_path_factory):
    """Folders after each stage, made when they are first asked for: "traced", and "fp32" and "fp16" with everything."""
    place = tmp_path_factory.mktemp("made")

    def run(*arguments):
        code, said, _ = server.run(*arguments, timeout=300)
        assert code == 0, said

    def folder(name):
        path = place / name
        if path.exists():
            return path
        if name == "traced":
            run(*trace_of(tiny, path))
            return path
        shutil.copytree(folder("traced"), path)
        data = json.loads((path / "manifest.json").read_text())
        data["config"] |= {"precision": name, "images": [PHOTO]}
        (path / "manifest.json").write_text(json.dumps(data))
        run("rewrite", path)
        run("build", path, "--backend", "openvino", "--target", "f32")
        run("validate", path)
        return path

    return folder


def trace_of(tiny, folder, *more):
    one = ["--precision", "fp32", "--method", "tome"]
    return ["trace", "--model", "tiny", "--checkpoint", tiny, *one, "--output", folder, *more]


def export_of(tiny, folder, *more):
    """The main job, up to the verdict."""
    stages = ["--backend", "openvino", "--target", "f32", "--image", PHOTO]
    return ["export", *trace_of(tiny, folder)[1:], *stages, *more]


PHOTO = "photo.png"


@pytest.fixture
def around(tmp_path):
    """Surroundings that nothing may touch, around the folder of the case."""

    around = tmp_path / "around"
    (around / "other").mkdir(parents=True)
    (around / "other" / "manifest.json").write_text("{}")
    (around / "outfile").write_text("mine")
    (around / ".out.partial").write_text("mine, too")
    return around


@pytest.fixture(scope="module", autouse=True)
def photo(tmp_path_factory):
    """A small photo; one is enough for these tests."""
    global PHOTO
    from PIL import Image

    PHOTO = str(tmp_path_factory.mktemp("photo") / "photo.png")
    Image.radial_gradient("L").resize((64, 48)).convert("RGB").save(PHOTO)


def cases(tiny, out):
    build = ["build", out, "--backend", "openvino", "--target", "f32"]
    force = trace_of(tiny, out, "--force")
    plain = {"exchange": False}
    return [
        Case("trace", trace_of(tiny, out), finished=TRACED),
        Case("trace into an empty folder", trace_of(tiny, out), start="empty", finished=TRACED),
        Case("trace --force", force, start="fp32", finished=TRACED, kept=[*TRACED, *REWRITTEN]),
        Case("trace --force, no exchange", force, "fp32", plain, finished=TRACED, kept=[*TRACED, *REWRITTEN]),
        Case("trace --force, in place", force, "fp32", {"cwd": "out"}, finished=TRACED),
        Case("rewrite", ["rewrite", out], start="traced", finished=REWRITTEN),
        Case("rewrite again", ["rewrite", out], start="fp32", finished=REWRITTEN),
        Case("rewrite again, FP16", ["rewrite", out], start="fp16", finished=[*REWRITTEN, "encoder.fp32.onnx"]),
        Case("build again", build, start="fp32", finished=REWRITTEN),
        Case("build again, FP16", build, start="fp16", finished=REWRITTEN),
        Case("export", export_of(tiny, out), finished=EXPORTED),
        Case("export --force", export_of(tiny, out, "--force"), "fp32", finished=EXPORTED, kept=REWRITTEN),
        Case("validate again", ["validate", out], start="fp32", finished=["report.json"]),
        Case("validate again, FP16", ["validate", out], start="fp16", finished=["report.json"]),
    ]


def laid(case, made, around):
    """The start of a case."""
    out = around / "out"
    shutil.rmtree(out, ignore_errors=True)
    if case.start == "empty":
        out.mkdir()
    elif case.start:
        shutil.copytree(made(case.start), out)
    return out


def strays(around):
    """Hidden files that a run left."""
    return [str(p.relative_to(around)) for p in around.rglob(".*") if p.name != ".out.partial"]


def killed(case, number, after, server, made, around):
    """One kill and what has to hold after it; False where the command ended before its n-th change."""
    out = laid(case, made, around)
    before = snapshot(around, ["out"])
    faults = {**case.faults, "within": str(around), "kill": [number, after]}
    if faults.get("cwd"):
        faults["cwd"] = str(out)
    code, said, changes = server.run(*case.arguments, timeout=300, **faults)
    if code == 0:
        return False
    assert code == -9, said
    where = f"{case.name}, {'after' if after else 'before'} {changes[-1]}"
    listed = truths(out) if out.exists() else None
    assert snapshot(around, ["out", *hidden(around)]) == before, where
    if case.kept and not out.exists():  # moved away for a moment: the next command, whichever it is, puts it back
        assert case.faults.get("exchange") is False, where
        put_back(out)
        listed = truths(out)
    if case.kept:
        assert listed is not None and (case.kept <= listed or case.finished <= listed), where
    if case.start is None and listed is not None:
        assert case.finished <= listed, where
    faults = {key: value for key, value in faults.items() if key in ("cwd", "exchange")}
    code, said, _ = server.run(*case.arguments, timeout=300, **faults)
    if code == 2 and "--force" in said and "--force" not in case.arguments:
        assert case.finished <= listed, where  # it had already been finished when it was killed
    else:
        assert code == 0, f"{where}: {said}"
    assert case.finished <= truths(out), where
    assert strays(around) == [], where
    assert snapshot(around, ["out"]) == before, where
    return True


def hidden(around):
    """Leftovers beside the folder."""
    return [p.name for p in around.iterdir() if p.name.startswith(".out.partial-")]


@pytest.mark.parametrize("which", range(14))
def test_kills(which, server, made, tiny, around, counted, large):
    """In the large suite at every change, before it and after it; by default at one of some cases."""
    if not large and which not in DEFAULT:
        pytest.skip("part of make test-robustness")
    case = cases(tiny, around / "out")[which]
    for number in range(1, NEVER) if large else (DEFAULT[which],):
        for after in (False, True) if large else (False,):
            if not killed(case, number, after, server, made, around):
                assert number > 5
                return
            counted("injected kills", case.name)
    assert not large
