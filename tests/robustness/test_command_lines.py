"""Command lines of any text in every option of every command: refused in a sentence, or they get as far as the work."""

from __future__ import annotations

import os

import click
import pytest
from bench_files import folder_of, outer_product
from fork_server import REACHED

from structsam_export.cli import cli
from structsam_export.methods import METHODS

hypothesis = pytest.importorskip("hypothesis", reason="pip install -e '.[dev]'")
st = hypothesis.strategies

COUNT, FEW = 10_000, 20
# Commands whose work cannot be stopped where it begins are left to tests of their own.
COMMANDS = (
    *("export", "trace", "rewrite", "build", "validate", "bench", "evaluate", "sweep", "methods", "doctor"),
    *("predict", "pack", "serve"),
)
NUMBERS = (
    *("0.5", "0", "1", "-1", "0.7500001", "nan", "inf", "-inf", "1e400", "1e-300", "0x1", "1_0", " 0.5 ", "0,5", "1/2"),
    *("\u0660.\u0665", "\u00b2", "9" * 30, "9" * 5000, "18446744073709551616", "+0.5", ".5", "5.", "50%", "True"),
)
TEXTS = (
    *("", " ", "x", "[red]", "[/]", "[bold]x", "<script>", "%s", "{}", "\x1b[31m", "\x1b]0;x\x07", "\n", "=", "~"),
    *("a" * 255, "a" * 300, "\u00e4" * 200, "../x", "/", ".", "..", "-", "--", "/dev/full", "/dev/null", "/proc/no/x"),
    *("/sys/x", "none", "all", "auto", "demo", "vit_b", "fp16", "portable", "last5", "global", "0-7", "7-0"),
    *("sm86", "f32", "openvino", "tensorrt-rtx", "onnxruntime", "ort-cpu", "eager", "bundled", "bundled-thin", "coco"),
    *("box", "point", "samhq", "margin=0.5", "margin=nan", "seed=" + "9" * 5000, "0.3:0-5,0.6:6-11", "0.3:0-0:1"),
    *("loop", "empty", "file.txt", "folder", "folder/", "folder/encoder.onnx", "x=folder", "damaged", "pipe", "a.png"),
    *("0-3000000000", "link", "meta", "triton", "1,1", "1,1,0,0", "127.0.0.1", *METHODS),
)
characters = st.characters(exclude_characters="\0")
text = st.one_of(st.sampled_from(TEXTS), st.sampled_from(NUMBERS), st.text(characters, max_size=12))


@st.composite
def command_lines(draw):
    """A command, some of its options with any text, and arguments."""
    name = draw(st.sampled_from(COMMANDS))
    parameters = cli.commands[name].params
    options = [p for p in parameters if isinstance(p, click.Option)]
    line = [name]
    if any(isinstance(p, click.Argument) for p in parameters):
        line += draw(st.lists(st.one_of(st.just("folder"), text), max_size=2))
    for option in draw(st.lists(st.sampled_from(options), max_size=5)) if options else ():
        line.append(option.opts[0])
        if not option.is_flag:
            line.append(draw(text))
    return [part.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape") for part in line]


def furnish(place):
    """Things that paths of a command line may lead to."""
    folder_of(place / "folder", outer_product(4, 4), files=("encoder.raw.onnx", "decoder.raw.onnx", "encoder.onnx"))
    folder_of(place / "damaged", outer_product(4, 4))
    (place / "damaged" / "encoder.onnx").write_bytes(b"x")
    (place / "empty").mkdir()
    (place / "file.txt").write_text("x")
    (place / "link").symlink_to("nothing")
    (place / "loop").symlink_to("loop")
    os.mkfifo(place / "pipe")


def test_any_command_line_ends_in_a_sentence(server, tmp_path, large, counted):
    furnish(tmp_path)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    quiet = {"STRUCTSAM_CACHE": str(tmp_path / "cache"), "TORCH_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    faults = {"reach": True, "cwd": str(tmp_path), "environment": quiet, "timeout": 300}

    @hypothesis.settings(
        max_examples=COUNT if large else FEW,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(command_lines())
    def tried(line):
        code, said, _ = server.run(*line, **faults)
        counted("command lines", code if REACHED not in said else "reached the work")
        assert code in (0, 2, 3, 4, 5) and "Traceback" not in said, (line, code, said[-3000:])
        assert "\x1b]" not in said, line
        left = [str(p) for p in tmp_path.rglob(".*") if str(p) not in before]
        assert not [p for p in left if "partial" in p or "ready" in p], (line, left)

    tried()
