"""`report.html`: one file, no scripts, no network."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from structsam_export.metrics import mask_ious
from structsam_export.report import pictures

if TYPE_CHECKING:
    from structsam_export.geometry import EncoderGeometry
    from structsam_export.validate.parity import Validation

NAMES = {
    "dense": "PyTorch, unpatched",
    "eager": "PyTorch, patched",
    "onnx_raw": "ONNX as traced",
    "onnx_fp32": "ONNX rewritten, FP32",
    "onnx": "ONNX rewritten",
    "onnx_unmerged": "ONNX rewritten, nothing merged, FP32",
    "engine": "engine",
}


def render(report: dict[str, Any], found: Validation, geometry: EncoderGeometry) -> str:
    """The report as one HTML page."""
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    environment = Environment(loader=PackageLoader("structsam_export", "report"), autoescape=True, trim_blocks=True)
    environment.filters["num"] = number
    style = files("structsam_export.report").joinpath("page.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        style=Markup(style),
        policy=Markup(policy(style)),
        r=report,
        names=names_of(report),
        photos=photo_rows(found),
        masks="miou_vs_dense" in report["quality"],
        maps=token_maps(found, geometry),
    )


def policy(style: str) -> str:
    """The content policy of a page with one style sheet: its own pictures and nothing else, no scripts, no network."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def names_of(report: dict[str, Any]) -> dict[str, str]:
    """What the stages of a report are called; a low precision says how it was computed, an engine whose it is."""
    kind, names = report["config"]["precision"], dict(NAMES)
    if kind != "fp32":
        names["onnx"] = f"ONNX rewritten, {kind.upper()}, fake-quantised"
    if (engine := report.get("engine")) and engine["executed"]:
        names["engine"] = f"engine, {engine['backend']} {engine['version']}, {engine['sm']}"
    return names


def number(value: Any) -> str:
    """Numbers as people read them: 4 significant digits, a dash for none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6f}" if 0.99 < value < 1 else f"{value:.4g}"
    return str(value)


def last_stage(found: Validation) -> str:
    """The last stage that ran."""
    return next(name for name in ("engine", "onnx", "onnx_raw", "eager") if name in found.stages)


def photo_rows(found: Validation) -> list[dict[str, Any]]:
    """Per photo: prompts, eager masks, exported masks, their difference, and the IoU of each prompt's masks.

    Of a model without masks: what it sees of each photo.
    """
    last, rows = last_stage(found), []
    inputs = found.reference.inputs
    if not found.stages["eager"].masks:
        seen = [(p.name, p.image if r.seen is None else r.seen) for p, r in zip(inputs.photos, inputs.prepared)]
        return [{"name": name, "shots": {"as seen": pictures.data_uri(image)}} for name, image in seen]
    for i, photo in enumerate(inputs.photos):
        eager, final, dense = (found.stages[s].masks[i] for s in ("eager", last, "dense"))
        shots = {
            "photo": pictures.with_prompts(photo.image, photo.prompts),
            NAMES["dense"]: pictures.with_masks(photo.image, dense),
            NAMES["eager"]: pictures.with_masks(photo.image, eager),
            NAMES[last]: pictures.with_masks(photo.image, final),
            "difference of the last two": pictures.difference(eager, final),
        }
        rows.append(
            {
                "name": photo.name,
                "shots": {k: pictures.data_uri(v) for k, v in shots.items()},
                "ious": dict(
                    zip((p.name for p in photo.prompts), zip(mask_ious([eager], [final]), mask_ious([dense], [eager])))
                ),
            }
        )
    return rows


def token_maps(found: Validation, geometry: EncoderGeometry, limit: int = 3) -> list[dict[str, Any]]:
    """Merged-token maps of the first photos, one picture for every decision of PyTorch."""
    reference, maps = found.reference, []
    inputs = reference.inputs
    for photo, ready, decisions in list(zip(inputs.photos, inputs.prepared, reference.decisions))[:limit]:
        shots, shown = {}, photo.image if ready.seen is None else ready.seen
        for name, decision in decisions.items():
            kind, block = name.split(".")
            window = geometry.windows[int(block)]
            where = f"{window}x{window} windows" if window else "global"
            caption = {
                "plan": f"block {block}, {where}",
                "grid": f"from block {block} on",
                "mlp": f"MLP, by block {block}",
            }
            groups = decision.plan.token_groups(geometry.window_grid(int(block)))
            shots[caption[kind]] = pictures.data_uri(pictures.token_map(ready, shown, groups), 240)
        maps.append({"name": photo.name, "shots": shots})
    return maps if reference.names else []
