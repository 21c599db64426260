"""Options that several commands share, and what they make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from structsam_export.backends import BACKENDS
from structsam_export.config import PREPROCESSINGS
from structsam_export.errors import UsageError
from structsam_export.models import MODELS


class Command(click.Command):
    """A command that takes no empty text: `--checkpoint ""`, as an unset shell variable makes it, is no default."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for before, text in zip(["", *args], args):
            option, equals, value = text.partition("=")
            attached = bool(equals) and option.startswith("--")
            if not (value if attached else text).strip():
                owner = option if attached else before if before.startswith("-") else "an argument"
                raise UsageError(f"The value of {owner} is empty. Pass one, or leave {owner} away.")
        return super().parse_args(ctx, args)


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click options as one decorator."""

    def apply(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


weights_options = options(
    click.option(
        "--model",
        default="auto",
        show_default=True,
        help=f"auto (read from --checkpoint; without one: demo), {', '.join(MODELS)}, or timm:NAME (docs/timm.md).",
    ),
    click.option("--checkpoint", metavar="PATH", help="Weights: a file, or a folder of Hugging Face's."),
    click.option(
        "--preprocessing",
        default="auto",
        show_default=True,
        help=f"Of images: {', '.join(PREPROCESSINGS)}. auto: the model's own; for a checkpoint of SAM's layout, sam.",
    ),
)
merge_options = options(
    weights_options,
    click.option("--method", default="structsam", show_default=True, help="Merge method; see 'methods'."),
    click.option("--rate", metavar="RATE", help="Fraction of tokens removed, or by layers: 0.3:0-5,0.6:6-11."),
    click.option("--variant", metavar="NAME", help="Variant of the method."),
    click.option("--layers", metavar="LAYERS", help="all (default), last5, global or a list: 0,3,6-8."),
    click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="Parameter of the method; repeatable."),
    click.option("--compat", metavar="thesis", help="Reproduce published behaviour: pads as tokens, Sobel sign bug."),
    click.option("--prompt-aware", is_flag=True, help="The encoder also takes a box and protects what it shows."),
    click.option(
        "--mlp",
        default="none",
        show_default=True,
        help="none, residual-consistency, merge (experimental: costs masks), or by layers: merge:0-3.",
    ),
    click.option("--mlp-density", type=float, help="Share of tokens through the MLP (residual-consistency)."),
)
plugins_option = click.option(
    "--plugins",
    default="none",
    show_default=True,
    help="Fused operators: none, all or a list (plugins/README.md). No GPU has shown a gain yet, so none.",
)
model_options = options(
    merge_options,
    click.option(
        "--precision", default="auto", show_default=True, help="Of the encoder: fp16, fp32, bf16. auto: fp16 if it can."
    ),
    click.option(
        "--form",
        default="portable",
        show_default=True,
        help="What the graph is written for: portable, attention (ONNX's operator, opset 23), ort-cpu or openvino.",
    ),
    plugins_option,
    click.option("--opset", type=int, default=18, show_default=True, help="ONNX opset."),
    click.option("--batch", type=int, default=1, show_default=True, help="Images per encoder call."),
    click.option("--output", type=click.Path(path_type=Path), help="Folder. Default: engines/<model>-<method>-..."),
    click.option("--force", is_flag=True, help="Replace an earlier export."),
)
build_options = options(
    click.option(
        "--backend", default="auto", show_default=True, help=f"auto, {', '.join(BACKENDS)} or none. See 'doctor'."
    ),
    click.option(
        "--target",
        default="auto",
        show_default=True,
        help="GPU: sm86,sm89,... or current (auto: this GPU, else sm86,sm89). OpenVINO: f32,bf16,f16.",
    ),
)
image_option = click.option(
    "--image", "images", multiple=True, metavar="PATH", help="Photo to validate on; repeatable."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON (and nothing else) on stdout.")
folder_argument = click.argument("folder", type=click.Path(path_type=Path))


def refuse(names: Iterable[str], why: str) -> None:
    """Refuse options that were written on the command line although they mean nothing there.

    Raises:
        UsageError: with the first of them.
    """
    ctx = click.get_current_context()
    flags = {p.name: p.opts[0] for p in ctx.command.params}
    usual = click.core.ParameterSource.DEFAULT
    if given := [flags[name] for name in names if ctx.get_parameter_source(name) is not usual]:
        raise UsageError(f"{why} Leave {given[0]} away.")


def config_of(given: dict[str, Any]) -> Any:
    """The configuration of a command's options.

    Raises:
        UsageError: a --param that is no NAME=VALUE.
    """
    from structsam_export.config import ExportConfig

    pairs = [text.partition("=") for text in given.pop("params")]
    if wrong := ["".join(pair) for pair in pairs if not (pair[0] and pair[1])]:
        raise UsageError(
            f"Cannot read parameter '{wrong[0]}'. Pass --param NAME=VALUE, for example --param margin=0.5."
        )
    return ExportConfig(**given, params=tuple((name, value) for name, _, value in pairs))
