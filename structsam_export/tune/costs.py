"""What schedules cost, as a share of the unpatched encoder: MACs in closed form, or latency measured on a runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from structsam_export.backends import backend, bench_runners
from structsam_export.config import ExportConfig
from structsam_export.console import stage
from structsam_export.environment import cpu_name, usable_cores
from structsam_export.errors import UsageError, unknown_name
from structsam_export.evaluate.predictors import identity_of
from structsam_export.evaluate.store import Store, key_of, read
from structsam_export.files import scratch
from structsam_export.models import LoadedModel
from structsam_export.tokens import WindowGrid
from structsam_export.tune.space import DENSE, KEEP, Choice, Space, job_of, macs_ratio, read_off

FILE = "latency.json"
ROUNDS = 9
TOGETHER = 5  # encoders timed beside the unpatched one: each is a process with weights of its own
Table = list[list[float]]


class Cost(Protocol):
    """Shares of the unpatched model's cost; `title` says of which."""

    title: str

    def ratios(self, configs: Sequence[ExportConfig]) -> list[float]:
        """Of each schedule as a whole."""

    def table(self, space: Space) -> Table:
        """What each option of each block adds to the cost (negative: saves); these are taken to add up."""


class Macs:
    """MACs as the papers count them."""

    title = "MACs"

    def __init__(self, loaded: LoadedModel) -> None:
        self.geometry = loaded.geometry

    def ratios(self, configs: Sequence[ExportConfig]) -> list[float]:
        return [macs_ratio(config, self.geometry) for config in configs]

    def table(self, space: Space) -> Table:
        return [
            [0.0 if choice == DENSE else self.ratios([space.single(block, choice)])[0] - 1 for choice in options]
            for block, options in enumerate(space.options)
        ]


class Latency:
    """Latency of the exported encoder, batch 1, FP32 graph, in rounds that take turns with the unpatched one's.

    Blocks of one kind (same windows on the same grid) cost the same, so that a choice is exported once for all blocks
    of a kind, and its cost is the difference to the unpatched encoder over their number: a single block's would drown
    in noise. What was timed is kept in the store, with the processor and the number of threads.

    Args:
        loaded: the model.
        runner: of `bench --runner`; one that `check_runner` accepts.
        store: where times are kept.
        threads: of the CPU; None: all cores.
    """

    def __init__(self, loaded: LoadedModel, runner: str, store: Store, threads: int | None = None) -> None:
        self.loaded, self.runner, self.store = loaded, runner, store
        self.threads = threads or usable_cores()
        self.title = f"latency on {runner}"

    def ratios(self, configs: Sequence[ExportConfig]) -> list[float]:
        keys = [self.key(config) for config in configs]
        known: dict[str, float] = (read(self.store.folder / FILE) or {}).get("ratios", {})
        missing = {key: config for key, config in zip(keys, configs) if key not in known and not is_dense(config)}
        for start in range(0, len(missing), TOGETHER):
            part = dict(list(missing.items())[start : start + TOGETHER])
            known |= self.timed(part)
            self.store.write(FILE, {"ratios": known})
        return [1.0 if is_dense(config) else known[key] for key, config in zip(keys, configs)]

    def key(self, config: ExportConfig) -> str:
        """What a ratio belongs to."""
        facts = {"runner": self.runner, "threads": self.threads, "cpu": cpu_name(), "rounds": ROUNDS}
        return key_of({**identity_of(job_of(config, self.loaded)), **facts})  # whose own runner is "eager"

    def timed(self, configs: Mapping[str, ExportConfig]) -> dict[str, float]:
        """The median over rounds of the ratio to the unpatched encoder, by key."""
        from structsam_export.benchmark import Variant, bench

        dense = replace(
            next(iter(configs.values())), method="none", variant=None, rate=None, mlp="none", mlp_density=None
        )
        with scratch("structsam-tune-") as folder:
            with stage(f"export {len(configs)} schedules to time them"):
                made = dict(self.exported({"dense": dense, **configs}, folder))
            variants = [Variant(key, self.runner, path, path) for key, path in made.items()]
            report = bench(variants, rounds=ROUNDS, threads=self.threads)
        return {row["name"]: row["ratio_paired"] for row in report["rows"][1:]}

    def exported(self, configs: Mapping[str, ExportConfig], folder: Path) -> Iterator[tuple[str, Path]]:
        """An encoder file of each, in the form its runtime wants."""
        from structsam_export.folder import OUTPUTS
        from structsam_export.rewrite import rewrite
        from structsam_export.trace import trace_encoder

        form = backend(bench_runners()[self.runner][0]).FORM
        encoder, size = self.loaded.sam.image_encoder, self.loaded.geometry.image_size
        for number, (key, config) in enumerate(configs.items()):
            raw, made = folder / f"{number}.raw.onnx", folder / f"{number}.onnx"
            with job_of(config, self.loaded).schedule.patched(encoder) as patched:
                trace_encoder(patched, size, raw)
            rewrite(raw, made, keep_outputs=OUTPUTS["encoder"], form=form)
            for beside in folder.glob(f"{raw.name}*"):
                beside.unlink()
            yield key, made

    def table(self, space: Space) -> Table:
        tried = {
            (block, choice): (config, count)
            for blocks in kinds(space, self.loaded)
            for choice, (config, count) in for_all(space, blocks).items()
            for block in blocks
        }
        ratio = dict(zip(tried, self.ratios([config for config, _ in tried.values()])))
        known: list[dict[Choice, float]] = [{DENSE: 0.0} for _ in space.options]
        for (block, choice), (_, count) in tried.items():
            known[block][choice] = (ratio[block, choice] - 1) / count

        def cost(block: int, choice: Choice) -> float:
            if choice.rate and choice.mlp == KEEP:
                return cost(block, Choice(choice.rate)) + cost(block, Choice(0.0, KEEP))
            return read_off(known[block], choice)

        return [[cost(block, choice) for choice in options] for block, options in enumerate(space.options)]


def kinds(space: Space, loaded: LoadedModel) -> list[list[int]]:
    """Blocks that work on the same window grid, and so cost the same."""
    found: dict[WindowGrid, list[int]] = {}
    for block in range(len(space.options)):
        found.setdefault(loaded.geometry.window_grid(block), []).append(block)
    return list(found.values())


def for_all(space: Space, blocks: Sequence[int]) -> dict[Choice, tuple[ExportConfig, int]]:
    """Each choice that is tried, in all of these blocks that have it, and how many have."""
    choices = dict.fromkeys(c for b in blocks for c in space.options[b] if space.tried(c))
    made = {}
    for choice in choices:
        having = [b for b in blocks if choice in space.options[b]]
        picked = [choice if block in having else DENSE for block in range(len(space.options))]
        made[choice] = space.config(picked), len(having)
    return made


def is_dense(config: ExportConfig) -> bool:
    """Whether a schedule leaves the encoder as it is."""
    return config.method == "none" and config.mlp == "none"


def check_runner(name: str) -> None:
    """Refuse runners that cannot time ONNX files here.

    Raises:
        UsageError: an unknown runner, or one that needs engines.
        MissingRuntimeError: it cannot run here.
    """
    known = bench_runners()
    reading = [other for other, (_, how) in known.items() if how.onnx]
    if name not in known:
        raise unknown_name("runner", name, reading)
    if name not in reading:
        raise UsageError(f"--runner {name} needs an engine for every try. Choose one of: {', '.join(reading)}.")
    where, how = known[name]
    backend(where).check_options(how.options)
