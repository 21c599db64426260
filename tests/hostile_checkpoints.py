"""Checkpoints that somebody made to hurt, or that a training script left, written on the spot."""

from __future__ import annotations

import json
import pickle
import random
import struct
import zipfile

import torch
from safetensors.torch import save_file


class Runs:
    """What a pickle can do."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return (__import__("os").system, (self.command,))


def changed(change):
    """The weights with one change, saved by PyTorch."""

    def write(state, path):
        result = change(dict(state))
        torch.save(dict(state) if result is None else result, path)

    return write


def one(name, value):
    """One tensor in place of another."""
    return changed(lambda state: state | {name: value(state.get(name, torch.zeros(3, 1, 1)))})


KEY = "image_encoder.blocks.0.attn.qkv.weight"
BIG = 1 << 31


def header(text, tail=b""):
    """A safetensors file of any header."""

    def write(state, path):
        data = text if isinstance(text, bytes) else json.dumps(text).encode()
        path.write_bytes(struct.pack("<Q", len(data)) + data + tail)

    return write


def raw(data):
    return lambda state, path: path.write_bytes(data)


def bomb(state, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\0" * (1 << 28))


def runs(state, path):
    with path.open("wb") as file:
        pickle.dump(Runs(f"touch {path.parent / 'executed'}"), file)


def runs_in_zip(state, path):
    torch.save({"model": state, "args": Runs(f"touch {path.parent / 'executed'}")}, path)


def truncated(share):
    def write(state, path):
        torch.save(dict(state), path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return write


def halves(state):
    return {k: v.half() for k, v in state.items()}


FORMS = {
    "as it should be": changed(lambda state: None),
    "half": changed(halves),
    "wrapped": changed(lambda state: {"model_state": state, "epoch": 3}),
    "wrapped deep": changed(lambda state: {"a": {"b": {"state_dict": state}}}),
    "prefixed": changed(lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()}),
    "expanded": one("pixel_mean", lambda v: torch.zeros(1).expand(BIG)),
    "expanded weights": one(KEY, lambda v: torch.zeros(1).expand(*v.shape)),
    "expanded far": one(KEY, lambda v: torch.zeros(1).expand(BIG, BIG // 4)),
    "sparse": one(KEY, lambda v: v.to_sparse()),
    "sparse csr": one(KEY, lambda v: v.to_sparse_csr()),
    "meta": one(KEY, lambda v: v.to("meta")),
    "quantised": one(KEY, lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8)),
    "complex": one(KEY, lambda v: v.to(torch.complex64)),
    "bool": one(KEY, lambda v: v > 0),
    "integers": one(KEY, lambda v: v.int()),
    "float8": one(KEY, lambda v: v.to(torch.float8_e4m3fn)),
    "nan": one(KEY, lambda v: v * float("nan")),
    "infinite": one(KEY, lambda v: v / 0),
    "empty tensor": one(KEY, lambda v: v[:0]),
    "scalar": one(KEY, lambda v: v[0, 0]),
    "transposed": one(KEY, lambda v: v.t()),
    "strided": one(KEY, lambda v: torch.zeros(2 * v.shape[0], v.shape[1])[::2]),
    "many dimensions": one(KEY, lambda v: v.reshape(*[1] * 40, *v.shape)),
    "text": one(KEY, lambda v: "weights"),
    "none": one(KEY, lambda v: None),
    "list": one(KEY, lambda v: v.tolist()),
    "nested": one(KEY, lambda v: {"weight": v}),
    "missing": changed(lambda state: {k: v for k, v in state.items() if k != KEY}),
    "missing many": changed(lambda state: dict(list(state.items())[::2])),
    "unknown key": changed(lambda state: state | {"\x1b]0;evil\x07[red][/]": torch.zeros(1)}),
    "unknown number": changed(lambda state: state | {7: torch.zeros(1)}),
    "unknown tuple": changed(lambda state: state | {("a", 1): torch.zeros(1)}),
    "long key": changed(lambda state: state | {"k" * 100_000: torch.zeros(1)}),
    "many keys": changed(lambda state: state | {f"k{i}": torch.zeros(1) for i in range(5000)}),
    "block 10^9": changed(lambda state: state | {"image_encoder.blocks.1000000000.norm1.weight": torch.zeros(32)}),
    "block -1": changed(lambda state: state | {"image_encoder.blocks.-1.norm1.weight": torch.zeros(32)}),
    "no dictionary": changed(lambda state: [1, 2]),
    "a tensor": changed(lambda state: torch.zeros(3)),
    "empty": changed(lambda state: {}),
    "a module": changed(lambda state: torch.nn.Linear(2, 2)),
    "runs": runs,
    "runs in zip": runs_in_zip,
    "zip bomb": bomb,
    "no bytes": raw(b""),
    "zeros": raw(b"\0" * 1000),
    "text file": raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "html": raw(b"<html>404 Not Found</html>"),
    "pickle header": raw(b"\x80\x02"),
    "cut: half": truncated(0.5),
    "cut: a little": truncated(0.99),
    "cut: head": truncated(0.01),
}
SAFE = {
    "safe": lambda state, path: save_file({k: v.contiguous() for k, v in state.items()}, path),
    "safe: header 2^63": raw(struct.pack("<Q", 1 << 63) + b"{}"),
    "safe: header 2^40": raw(struct.pack("<Q", 1 << 40) + b"{}"),
    "safe: no header": raw(struct.pack("<Q", 0)),
    "safe: no JSON": header(b"nothing"),
    "safe: deep": header(b'{"a":' * 50_000),
    "safe: list": header([]),
    "safe: F4": header({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"\0"),
    "safe: dtype": header({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "safe: overlap": header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in ("a", "b")}, b"\0" * 4),
    "safe: beyond": header({"a": {"dtype": "F32", "shape": [BIG], "data_offsets": [0, 4 * BIG]}}, b"\0" * 4),
    "safe: negative": header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [-4, 0]}}, b"\0" * 4),
    "safe: overflow": header({"a": {"dtype": "F32", "shape": [1 << 62, 8], "data_offsets": [0, 4]}}, b"\0" * 4),
    "safe: hole": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"\0" * 8),
    "safe: metadata": header({"__metadata__": {"format": 5}}),
}


def written(state, folder, seed=1):
    """Endless: (name, path) of a checkpoint; every form, then mutations of their bytes."""
    for name, write in (FORMS | SAFE).items():
        path = folder / ("c.safetensors" if name in SAFE else "c.pth")
        path.unlink(missing_ok=True)
        write(state, path)
        yield name, path
    chance = random.Random(seed)
    while True:
        safe = chance.random() < 0.4
        path = folder / ("c.safetensors" if safe else "c.pth")
        (SAFE["safe"] if safe else FORMS["as it should be"])(state, path)
        data = bytearray(path.read_bytes())
        # Where the structure is, not the values: the head, or the directory at the end of the archive.
        start, end = (0, min(len(data), 8000)) if chance.random() < 0.5 else (max(0, len(data) - 8000), len(data))
        for _ in range(chance.randint(1, 10)):
            data[chance.randrange(start, end)] = chance.randrange(256)
        path.write_bytes(data)
        yield "mutated", path
