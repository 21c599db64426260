"""A report as Markdown: conditions on top, tables with ratios, what became of every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gpu_suite import NOT_MEASURED

HEAD = ("what", "p50 ms", "p90", "p99", "n", "copy in", "copy out", "/ plain engine", "/ eager stock")
KERNELS = ("what", "part", "largest error of the kernel", "p50 ms", "p90", "p99", "launches")
PARITY = ("what", "max_rel", "cosine", "mask IoU mean", "min", "photos")


def markdown(report: dict[str, Any]) -> str:
    """The whole page."""
    parts = ["# GPU suite", *banner(report), "## Conditions", *conditions(report)]
    rows = [r for r in report["steps"] if {"latency", "parity"} & set(r["result"] or ())]
    for model in dict.fromkeys(r["arguments"]["model"] for r in rows):
        mine = [r for r in rows if r["arguments"]["model"] == model]
        where = "ONNX Runtime on the CPU, 2 runs" if report["dry_run"] else "GPU"
        parts += [
            f"## {model}: encoder latency, {where}",
            table(HEAD, latency_rows([r for r in mine if "latency" in r["result"]])),
        ]
        if not report["dry_run"]:
            parts.append(NOTES)
        parts += [f"## {model}: against eager PyTorch in FP32", table(PARITY, parity_rows(mine))]
    kernels = [r for r in report["steps"] if r["name"].startswith("kernel ") and r["result"]]
    if kernels:
        parts += ["## Kernels of plugins/", table(KERNELS, kernel_rows(kernels))]
    parts += ["## Steps", table(("step", "seconds", "status"), step_rows(report))]
    return "\n\n".join(parts) + "\n"


NOTES = (
    "Milliseconds of one image. p50 to p99 are the work alone, by CUDA events; copies (pinned memory) are beside it. "
    "Ratios are of medians: to the engine of the plain export, same runner and precision (TensorRT-RTX with a CUDA "
    "graph: to plain with one), and to stock PyTorch of the same precision. FP32 is without TF32; `tf32` is with it "
    "and is compared with FP32. `patched` and `merged` have the patched model as their reference: what merging costs "
    "in quality is not measured here. Merged engines take their own decisions, so that ties may fall differently."
)


def banner(report: dict[str, Any]) -> Iterator[str]:
    """Says first what a reader must not overlook."""
    if report["dry_run"]:
        yield f"**Dry run: {NOT_MEASURED}.** Everything here was done on a CPU; its times say nothing about a GPU."
    elif not report["measured_on_gpu"]:
        yield "**Not measured on GPU**: no step has measured anything."
    options = report["options"]
    weights = ", random weights (the demo model has its own)" if options["random"] else ""
    yield (
        f"Models {', '.join(options['models'])}{weights}; methods {', '.join(options['methods'])} at rate "
        f"{options['rate']:g}; {report['spent_s']:.0f} of {report['budget_s']:g} s used."
    )


def conditions(report: dict[str, Any]) -> Iterator[str]:
    """One line for each fact."""
    found = next((r for r in report["steps"] if r["name"] == "conditions"), None)
    facts = (found or {}).get("result") or {}
    if not facts:
        yield f"Unknown: {found['status'] if found else 'not asked yet'}."
        return
    lines = [f"- GPU: {facts['gpu'] or NOT_MEASURED}"]
    lines += [f"- {key}: {value}" for key, value in facts.items() if not isinstance(value, dict) and key != "gpu"]
    lines += [f"- nvidia-smi {key}: {value}" for key, value in facts["nvidia_smi"].items()]
    after: dict[str, str] = next(
        (r["result"] for r in report["steps"] if r["name"] == "conditions at the end" and r["result"]), {}
    )
    lines += [f"- nvidia-smi {k}, at the end: {v}" for k, v in after.items() if v != facts["nvidia_smi"].get(k)]
    lines += [f"- {name} {version}" for name, version in facts["versions"].items()]
    for probe in (r for r in report["steps"] if r["name"].startswith("probe ")):
        lines.append(f"- {probe['name'].removeprefix('probe ')}: {verdict(probe)}")
    yield "\n".join(lines)


def verdict(probe: dict[str, Any]) -> str:
    """What a probe has shown."""
    result = probe["result"]
    if not result:
        return str(probe["status"])
    if "provider" in result:
        return str(result["provider"])
    return "builds and runs here" if result["executed"] is True else f"builds; {result['executed']}"


def latency_rows(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Rows of the latency table."""
    by_name = {r["name"]: r["result"]["latency"] for r in rows}
    for row in rows:
        own = row["result"]["latency"]
        copies = (own[k]["p50"] if k in own else None for k in ("copy_in", "copy_out"))
        references = (by_name.get(n) if n else None for n in (plain_of(row), stock_of(row)))
        times = (f"{own[k]:.3f}" for k in ("p50", "p90", "p99"))
        shown = (label(row), *times, str(own["n"]), *(number(c) for c in copies))
        yield (*shown, *(number(own["p50"] / r["p50"]) if r and r["p50"] else "-" for r in references))


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def label(row: dict[str, Any]) -> str:
    """A step's name without its model and its verb."""
    verb, _, rest = row["name"].partition(" ")
    what = rest.removeprefix(row["arguments"]["model"] + " ")
    return what if verb == "run" else f"{verb} {what}"


def plain_of(row: dict[str, Any]) -> str | None:
    """The step that ran the plain export the same way; None for what is no ONNX file."""
    given = row["arguments"]
    if "form" not in given:
        return None
    own, plain = (f" {m} {f} " for m, f in ((given["method"], given["form"]), ("none", "plain")))
    return str(row["name"].replace(own, plain, 1))


def stock_of(row: dict[str, Any]) -> str:
    """The step that ran stock PyTorch in the same precision."""
    precision = row["arguments"]["precision"].replace("tf32", "fp32")
    return f"eager {row['arguments']['model']} none stock {precision}"


def parity_rows(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Rows of the parity table."""
    for row in rows:
        found = row["result"].get("parity")
        if not found:
            yield (label(row), "no reference", "-", "-", "-", "-")
        elif not found["finite"]:
            yield (label(row), "NaN or infinity", "-", "-", "-", str(found["photos"]))
        else:
            ious = (f"{found[k]:.6f}" if k in found else "-" for k in ("mask_iou_mean", "mask_iou_min"))
            yield (label(row), f"{found['max_rel']:.1e}", f"{found['cosine']:.6f}", *ious, str(found["photos"]))


def kernel_rows(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A line for each kernel, and for each way to the same result that was timed beside it."""
    for row in rows:
        result, what = row["result"], row["name"].removeprefix("kernel ")
        worst = f"{max(result['max_rel'].values()):.1e} on {result['device']}"
        launches = str(result.get("launches", "-"))
        if isinstance(result["times"], str):
            yield what, "all", worst, result["times"], "-", "-", launches
            continue
        for name, time in result["times"].items():
            if "failed" in time:
                yield what, name, worst, time["failed"].replace("|", "/").replace("\n", " "), "-", "-", launches
            else:
                yield what, name, worst, *(f"{time[k]:.4f}" for k in ("p50", "p90", "p99")), launches


def step_rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """What became of every step."""
    for row in report["steps"]:
        yield row["name"], f"{row['seconds']:.1f}", row["status"].replace("|", "\\|")


def table(head: Sequence[str], rows: Iterator[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
