"""Manifests of any shape, with every command that reads one: refused in a sentence, or used; nothing else touched."""

from __future__ import annotations

import copy
import json
import random
from itertools import cycle

from bench_files import folder_of, outer_product
from fork_server import REACHED

COUNT, FEW = 2_000, 15
VALUES = (
    *(None, [], {}, "", "x", 0, -1, 7, 1.5, True, False, 10**30, -(10**30), float("nan"), float("inf"), [[[]]], [1, 2]),
    *({"x": 1}, "a\0b", "a" * 5000, "\ud800", "../victim", "/etc/hostname", "..", "[/]", "\x1b]0;x\x07", "<script>"),
    *("encoder.onnx", "manifest.json", "0" * 64, [["a", "b"]], [["a", "b", "c"]], 2**53, 1 << 16, "demo", "tensorrt"),
)
TEXTS = (
    *("", "null", "[]", "1", '"x"', "NaN", "{", "\0\1\2", "\ufeff{}", "[" * 100_000, '{"a":' * 50_000, "9" * 5000),
    *('{"config":{},"config":{}}', '{"files":{"../x":{}}}', "{} {}"),
)
COMMANDS = (
    ["rewrite"],
    ["validate"],
    ["build", "--backend", "openvino"],
    ["bench", "--runs", "1"],
    ["evaluate", "--dataset", "bundled-thin", "--limit", "1", "--output"],
)
FILES = ("encoder.raw.onnx", "decoder.raw.onnx", "encoder.onnx", "decoder.onnx")
GEOMETRY = {
    "image_size": 128,
    "patch_size": 16,
    "dim": 32,
    "depth": 3,
    "heads": 2,
    "mlp_dim": 128,
    "out_channels": 32,
    "grid": [8, 8],
    "windows": [3, 0, 3],
}


def whole(folder, tiny):
    """A manifest that can be used, with something in every field."""
    folder_of(folder, outer_product(4, 4), files=FILES)
    data = json.loads((folder / "manifest.json").read_text())
    data["config"] |= {"model": "tiny", "checkpoint": str(tiny), "precision": "fp32", "params": [], "images": []}
    data["model"] |= {"checkpoint": "tiny.pth", "preprocessing": "sam", "geometry": GEOMETRY}
    data["versions"] = {"torch": "2"}
    data["results"] = {"rewrite": {"encoder": {"split": 1}}, "graph": {"encoder": {"nodes": 3}}, "passed": True}
    entry = data["files"]["encoder.onnx"]
    engine = {"file": "encoder.onnx", "part": "encoder", "backend": "openvino", "version": "1", "sm": "f32", **entry}
    data["engines"] = [{**engine, "options": {}, "executed": False}]
    return data


def paths(value, at=()):
    """Every place in plain values."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*at, key))


def variations(data, chance):
    """Endless: texts that are no manifest, then manifests with one to three places changed."""
    yield from TEXTS
    places = [path for path in paths(data) if path]
    while True:
        changed = copy.deepcopy(data)
        for path in chance.sample(places, chance.choice((1, 1, 1, 2, 3))):
            *way, last = path
            try:
                at = changed
                for key in way:
                    at = at[key]
                if chance.random() < 0.15:
                    del at[last]
                elif chance.random() < 0.1 and isinstance(at, dict):
                    at[chance.choice(VALUES) if isinstance(chance.choice(VALUES), str) else "new"] = at.pop(last)
                else:
                    at[last] = chance.choice(VALUES)
            except (KeyError, IndexError, TypeError):
                continue  # an earlier change took the place away
        yield json.dumps(changed)


def test_manifests_are_used_or_refused(server, tiny, tmp_path, large, counted):
    folder, victim = tmp_path / "folder", tmp_path / "victim"
    data = whole(folder, tiny)
    victim.write_text("mine")
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}
    chosen = cycle(COMMANDS)
    for number, text in enumerate(variations(data, random.Random(1))):
        if number == (COUNT if large else FEW):
            break
        (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        command = next(chosen)
        rest = [*command[1:], str(tmp_path / "evaluated")] if command[-1] == "--output" else command[1:]
        code, said, _ = server.run(command[0], folder, *rest, reach=True, timeout=300, cwd=str(tmp_path))
        counted("manifests", code if REACHED not in said else "reached the work")
        assert code in (0, 2, 4, 5) and "Traceback" not in said, (command, text[:500], said[-3000:])
        assert "\x1b]" not in said
        assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"} == files, (command, text)
        assert victim.read_text() == "mine"
