"""Encoders side by side: latency in interleaved rounds, peak memory, and where the time goes.

Each variant runs in a process of its own; rounds take turns, so that a busy machine slows all of them alike. Ratios are
what counts: absolute times of a shared machine are noise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any

from structsam_export.benchmark.variants import Variant, runners, variants_of
from structsam_export.console import stage
from structsam_export.environment import cpu_name, usable_cores, versions
from structsam_export.errors import ArtifactError, UsageError
from structsam_export.files import disk_errors, scratch
from structsam_export.folder import companion
from structsam_export.supervise import parsing
from structsam_export.timing import interleaved, percentiles

__all__ = ["SCHEMA", "Variant", "bench", "runners", "table", "variants_of"]

SCHEMA = 1
# Bytes a variant may need beside the others, as a multiple of its file: weights, their packed copy, activations.
MEMORY = 8
PROFILED_RUNS = 4
# Modules are found where this process finds them: `-m` would look into the current folder first, and nowhere else.
START = "import sys; sys.path[:] = sys.argv[1:]; from structsam_export.benchmark.worker import main; main()"


class Worker:
    """A process that holds one variant (`benchmark.worker`); with `profile`, a folder, ONNX Runtime's profiler runs."""

    def __init__(self, variant: Variant, threads: int, *, profile: Path | None = None) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        command = [sys.executable, "-c", START, *sys.path]
        self.name = variant.name
        # A file, not a pipe: nobody reads while the process works, and a full pipe would stop it for good.
        with disk_errors(Path(gettempdir()), "set TMPDIR to another folder"):
            self.said = TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed by `close`)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True, env=environment
        )
        self.memory: list[dict[str, int]] = []
        try:
            with parsing("the benchmark", variant.onnx):
                self.ask({**variant.spec(), "threads": threads, "profile": str(profile) if profile else None})
        except BaseException:
            self.close()
            raise

    def ask(self, request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            ArtifactError: the process failed; with what it said last.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        line = ""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            raise ArtifactError(f"{self.name} stopped running: {self.last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ArtifactError(f"{self.name} cannot be run: {answer['error']}")
        return answer

    def last_words(self) -> str:
        """The last line the process wrote to stderr, or how it ended (-9: the system ran out of memory)."""
        code = self.process.wait()
        self.said.seek(0)
        said = self.said.read().strip().splitlines()
        if code == -9:
            return "killed, probably out of memory. Bench fewer targets at once, or pass --reload."
        return f"{said[-1]} (exit code {code})" if said else f"exit code {code}"

    def run(self) -> float:
        """One inference; its seconds."""
        answer = self.ask("run")
        self.memory.append({key: answer[key] for key in ("peak", "activations")})
        return float(answer["seconds"])

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.said):
            with suppress(BrokenPipeError):  # of a request that a dead process did not read
                if pipe is not None:
                    pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def bench(
    variants: Sequence[Variant],
    *,
    rounds: int = 7,
    threads: int | None = None,
    reload: bool | None = None,
    profile: bool = False,
) -> dict[str, Any]:
    """Run variants in turn.

    Args:
        variants: what to run; the first is what ratios are taken to.
        rounds: runs of each variant, after one warm-up.
        threads: CPU threads of each variant, pinned to as many cores; default all cores.
        reload: start every variant afresh in each round, so that only one is in memory; default: where not all fit.
        profile: also say which operators take the time, and how much of it merging added (ONNX Runtime only).

    Returns:
        `schema`, `conditions`, and `rows`: one per variant with name, runner, p50, p90, p99 (ms), n, ratio of the
        medians to the first row, ratio_paired (median of the ratios within each round), peak_bytes (process),
        activation_bytes (above what it held before), nodes, macs (of one image), and profile.
    """
    if rounds < 1:
        raise UsageError(f"{rounds} rounds measure nothing. Pass --runs 1 or more.")
    threads = threads or usable_cores()
    one_by_one = not fits(variants) if reload is None else reload
    memory: dict[str, list[dict[str, int]]] = {v.name: [] for v in variants}
    with stage(f"{len(variants)} variants, {rounds} rounds") as say, ExitStack() as active:
        workers = {} if one_by_one else {v.name: active.enter_context(Worker(v, threads)) for v in variants}

        def call(variant: Variant) -> float:
            if not one_by_one:
                return workers[variant.name].run()
            with Worker(variant, threads) as worker:
                worker.run()  # warm-up
                seconds = worker.run()
                memory[variant.name] += worker.memory
            return seconds

        taken = interleaved({v.name: lambda v=v: call(v) for v in variants}, rounds, say)  # type: ignore[misc]
        for name, worker in workers.items():
            memory[name] = worker.memory
    rows = [row_of(v, taken, variants[0].name, memory[v.name]) for v in variants]
    if profile:
        add_profiles(variants, rows, threads)
    return {"schema": SCHEMA, "conditions": conditions(threads, rounds, one_by_one), "rows": rows}


def fits(variants: Sequence[Variant]) -> bool:
    """Whether all variants should fit into memory side by side."""
    import psutil

    size = sum(v.onnx.stat().st_size + data_size(v.onnx) for v in variants)
    return bool(size * MEMORY < 0.8 * psutil.virtual_memory().available)


def data_size(onnx: Path) -> int:
    """Bytes of the weights beside an ONNX file."""
    beside = companion(onnx.name)
    data = onnx.with_name(beside) if beside else onnx
    return data.stat().st_size if beside and data.exists() else 0


def row_of(
    variant: Variant, taken: dict[str, list[float]], reference: str, memory: Sequence[dict[str, int]]
) -> dict[str, Any]:
    """One row of the table."""
    import numpy as np

    from structsam_export.graphs import load
    from structsam_export.macs import graph_macs

    seconds, base = np.array(taken[variant.name]), np.array(taken[reference])
    graph = load(variant.onnx).graph
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value
    try:
        macs: int | None = graph_macs(variant.onnx) // max(batch, 1)
    except ValueError:  # a file of someone else, without shapes
        macs = None
    return {
        "name": variant.name,
        "runner": variant.runner,
        "file": variant.file.name,
        **percentiles(taken[variant.name]),
        "ratio": round(float(np.median(seconds) / np.median(base)), 4),
        "ratio_paired": round(float(np.median(seconds / base)), 4),
        "peak_bytes": max(m["peak"] for m in memory),
        "activation_bytes": max(m["activations"] for m in memory),
        "nodes": len(graph.node),
        "macs": macs,
        "seconds": [round(s, 6) for s in seconds],
    }


def add_profiles(variants: Sequence[Variant], rows: Sequence[dict[str, Any]], threads: int) -> None:
    """Run every ONNX variant a few times more under ONNX Runtime's profiler; the fastest run of each node counts."""
    from structsam_export.benchmark.profile import summary

    for variant, row in zip(variants, rows):
        row["profile"] = None
        if variant.runner.startswith("ort"):
            # The folder outlives the process, so that a run that is stopped leaves no file behind either.
            with (
                stage(f"profile {variant.name}"),
                scratch("structsam-bench-") as folder,
                Worker(variant, threads, profile=folder) as worker,
            ):
                for _ in range(PROFILED_RUNS):
                    worker.run()
                row["profile"] = summary(variant.onnx, worker.ask("profile")["events"])


def conditions(threads: int, rounds: int, one_by_one: bool) -> dict[str, Any]:
    """Machine and versions a table was made with."""
    import platform

    return {
        "cpu": cpu_name(),
        "threads": threads,
        "cores": os.cpu_count(),
        "rounds": rounds,
        "reloaded": one_by_one,
        "platform": platform.platform(),
        "versions": versions(),
    }


def table(report: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A report as the head and the rows of a table for people."""
    rows, profiled = report["rows"], any(r.get("profile") for r in report["rows"])
    head = ("variant", "p50 ms", "p90", "ratio", "paired", "GMACs", "nodes", "peak MiB", "activations MiB")
    body = []
    for r in rows:
        macs = "-" if r["macs"] is None else f"{r['macs'] / 1e9:.2f}"
        times = (f"{r['p50']:.1f}", f"{r['p90']:.1f}", f"{r['ratio']:.3f}", f"{r['ratio_paired']:.3f}")
        memory = (f"{r['peak_bytes'] / 2**20:.0f}", f"{r['activation_bytes'] / 2**20:.0f}")
        share = r.get("profile")
        added = (f"{share['merging_share']:.1%}" if share else "-",) if profiled else ()
        body.append((r["name"], *times, macs, str(r["nodes"]), *memory, *added))
    return (*head, "merging") if profiled else head, body
