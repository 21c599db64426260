"""Runs in one checkout: `worker.py list` prints its cases as JSON, `worker.py hash CASES` a line of JSON for each."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import time
from pathlib import Path

OPTIONS = {
    "batch 2": ["--batch", "2"],
    "rates by layer": ["--rate", "0.3:0-5,0.6:6-7"],
    "last5": ["--layers", "last5"],
    "ort-cpu": ["--form", "ort-cpu", "--precision", "fp32"],
    "ort-cpu mlp merge": ["--form", "ort-cpu", "--precision", "fp32", "--mlp", "merge"],
    "ort-cpu rc": ["--form", "ort-cpu", "--precision", "fp32", "--mlp", "residual-consistency"],
    "attention": ["--form", "attention", "--opset", "23", "--backend", "none"],
    "bf16": ["--precision", "bf16"],
}


def cases() -> list[tuple[str, list[str]]]:
    """(name, options) of every method x variant x MLP policy, and of structsam with other options."""
    code, out, _ = command("methods", "--json")
    assert code == 0
    made: dict[str, list[tuple[str, list[str]]]] = {"none": [], "merge": [], "residual-consistency": []}
    for row in json.loads(out):
        forms = [(variant, []) for variant in row["variants"]]
        if row["prompt_aware"]:
            forms.append(("prompt-aware", ["--prompt-aware"]))
        if "thesis" in row["compat"]:
            forms.append(("thesis", ["--compat", "thesis"]))
        for variant, more in forms:
            chosen = more or ["--variant", variant]
            for mlp in ("none",) if variant == "thesis" else ("none", "merge", "residual-consistency"):
                name = f"{row['name']} {variant} mlp {mlp}"
                made[mlp].append((name, ["--method", row["name"], *chosen, "--mlp", mlp]))
    made["none"] += [(f"structsam {name}", ["--method", "structsam", *more]) for name, more in OPTIONS.items()]
    return [case for policy in made.values() for case in policy]


def hashed(options: list[str]) -> dict[str, str]:
    """SHA-256 of every ONNX file of one case."""
    folder = Path("case")
    precision = [] if "--precision" in options else ["--precision", "fp16"]
    if "--backend" in options:  # not an option of `trace`
        at = options.index("--backend")
        options = [*options[:at], *options[at + 2 :]]
    code, _, said = command("trace", *options, *precision, "--output", str(folder), "--force")
    if code == 2:
        return {"refused": said.strip().splitlines()[-1]}
    assert code == 0, said
    code, _, said = command("rewrite", str(folder))
    assert code == 0, said
    files = sorted(p for p in folder.iterdir() if p.suffix == ".onnx" or p.name.endswith(".onnx.data"))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def trace_decoders_once() -> None:
    """Let all cases share the decoder's trace: it does not depend on the method, and takes a third of the time."""
    import shutil

    from structsam_export import trace

    own, made = trace.trace_decoder, Path("decoders")

    def traced(sam: object, path: Path, *, opset: int = 18) -> None:
        kept = made / str(opset) / path.name
        if not kept.exists():
            kept.parent.mkdir(parents=True)
            own(sam, kept, opset=opset)
        for file in kept.parent.iterdir():
            shutil.copy(file, path.parent / file.name)

    trace.trace_decoder = traced


def calibrate_on_one_photo() -> None:
    """One photo tells as well as seven whether two checkouts type a graph alike."""
    from importlib import import_module

    for module in ("structsam_export.job", "structsam_export.pipeline"):  # where it was before job.py
        with contextlib.suppress(ImportError, AttributeError):
            found = import_module(module)
            found.VALIDATION_MACS = min(found.VALIDATION_MACS, 1)


def command(*arguments: str) -> tuple[int, str, str]:
    """Run the public command in this process: exit code, stdout, stderr."""
    from structsam_export.cli import main

    sys.argv = ["structsam-export", *arguments]
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if sys.argv[1] == "list":
        print(json.dumps(cases()), file=answers)
    else:
        trace_decoders_once()
        calibrate_on_one_photo()
        wanted = json.loads(sys.argv[2])
        for number, (case, chosen) in enumerate(wanted):
            began = time.perf_counter()
            print(json.dumps([case, hashed(chosen)]), file=answers, flush=True)
            print(f"{number + 1}/{len(wanted)} {case} {time.perf_counter() - began:.1f} s", file=sys.stderr)
