"""Runs steps one after another and keeps what they found on disk after each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_suite import NOT_MEASURED, SCHEMA, Options
from gpu_suite.report import markdown
from gpu_suite.steps import Step
from gpu_suite.worker import Lost, Worker

NO_TIME = "skipped: no time left"
NO_GPU = "skipped: no CUDA device (--dry-run does what needs none)"
# A step that takes this many times as long as it should hangs, and must not take the others' time with it.
PATIENCE, LEAST_PATIENCE = 10, 60.0


@dataclass
class Suite:
    """One run.

    Args:
        options: what was asked for.
        output: folder of gpu_suite.json, gpu_suite.md and gpu_suite.log.
        budget: seconds for all steps.
        tell: receives a line about each step.
    """

    options: Options
    output: Path
    budget: float
    tell: Callable[[str], None] = print
    records: list[dict[str, Any]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    worker: Worker | None = None
    backend: str | None = None

    def run(self, steps: Sequence[Step]) -> dict[str, Any]:
        """Run all steps that can be; returns the report."""
        self.output.mkdir(parents=True, exist_ok=True)
        try:
            for step in steps:
                self.record(step.name, *self.attempt(step), {k: v for k, v in step.arguments.items() if k != "options"})
        finally:
            self.stop()
        return self.report()

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - (time.monotonic() - self.began)

    def attempt(self, step: Step) -> tuple[str, float, Any]:
        """Status, seconds and result of a step; never raises for what goes wrong inside it."""
        if self.lacks_gpu():
            return NO_GPU, 0.0, None
        succeeded = {r["name"] for r in self.records if r["status"] == "ok"}
        if step.gpu and self.options.dry_run:
            return NOT_MEASURED, 0.0, None
        if missing := [name for name in step.needs if name not in succeeded]:
            return f"skipped: needs '{missing[0]}'", 0.0, None
        if self.left() < step.seconds:
            return NO_TIME, 0.0, None
        self.tell(f"{step.name} ...")
        began = time.monotonic()
        try:
            # What a step should take is said of machines with a GPU; a dry run is on any.
            least = self.budget if self.options.dry_run else LEAST_PATIENCE
            patience = min(self.left(), max(least, PATIENCE * step.seconds))
            answer = self.process_for(step).ask(step.action, step.arguments, patience)
        except (Lost, OSError) as error:
            answer = {"error": str(error)}
        seconds = round(time.monotonic() - began, 2)
        if "error" in answer:
            self.stop()  # whatever broke may have left its process broken
            return f"failed: {answer['error']}", seconds, None
        return "ok", seconds, answer["result"]

    def lacks_gpu(self) -> bool:
        """Whether a real run has found no GPU to measure on."""
        facts = next((r["result"] for r in self.records if r["name"] == "conditions"), None)
        return not self.options.dry_run and facts is not None and facts["gpu"] is None

    def process_for(self, step: Step) -> Worker:
        """The worker that is running, unless the step needs the other TensorRT."""
        if self.worker is None or (step.backend and self.backend and step.backend != self.backend):
            self.stop()
            self.worker = Worker(self.output / "gpu_suite.log", hide_gpu=self.options.dry_run)
        self.backend = step.backend or self.backend
        return self.worker

    def stop(self) -> None:
        """End the worker; the next step gets a new one."""
        if self.worker is not None:
            self.worker.close()
        self.worker = self.backend = None

    def record(self, name: str, status: str, seconds: float, result: Any, arguments: dict[str, Any]) -> None:
        """Keep what a step came to, on disk at once: a kill then loses only the step it hits."""
        row = {"name": name, "status": status, "seconds": seconds, "arguments": arguments, "result": result}
        self.records.append(row)
        self.tell(f"{name}: {status}" + (f", {seconds:.1f} s" if seconds else ""))
        report = self.report()
        replace(self.output / "gpu_suite.json", json.dumps(report, indent=2) + "\n")
        replace(self.output / "gpu_suite.md", markdown(report))

    def report(self) -> dict[str, Any]:
        """Everything so far."""
        measured = [r for r in self.records if measures(r["result"]) and not self.options.dry_run]
        return {
            "schema": SCHEMA,
            "dry_run": self.options.dry_run,
            "measured_on_gpu": bool(measured),
            "options": {k: v for k, v in self.options.to_dict().items() if k not in ("work", "checkpoints")},
            "budget_s": self.budget,
            "spent_s": round(time.monotonic() - self.began, 1),
            "steps": self.records,
        }


def measures(result: Any) -> bool:
    """Whether a result holds times of a GPU's work."""
    return bool(result) and ("latency" in result or isinstance(result.get("times"), dict))


def replace(path: Path, text: str) -> None:
    """Write a file in one step."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
