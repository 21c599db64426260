"""What is patched where: a method for each block and one MLP policy, resolved against an encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from structsam_export.config import ExportConfig
from structsam_export.errors import UsageError
from structsam_export.methods import Method, make_method, method_class, parameter
from structsam_export.methods.mlp import make_mlp
from structsam_export.methods.rates import parse_rate
from structsam_export.patch import patched, resolve_layers

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

    from structsam_export.models.geometry import EncoderGeometry


@dataclass(frozen=True)
class Schedule:
    """`blocks` maps blocks to methods (all of one class), `mlp` is a policy of `methods.mlp` or None."""

    blocks: dict[int, Method]
    method: Method
    mlp: Any = None
    prompt_aware: bool = False

    @property
    def rates(self) -> dict[int, float]:
        """Rate asked for, by block."""
        return {layer: method.rate for layer, method in sorted(self.blocks.items())}

    @property
    def rate(self) -> float | None:
        """The one rate of all blocks, None if they differ."""
        rates = set(self.rates.values()) or {self.method.rate}
        return rates.pop() if len(rates) == 1 else None

    @property
    def fp16_changes_decisions(self) -> bool:
        """Whether the method's decisions are known not to survive rounding to FP16."""
        own: tuple[str, ...] = getattr(self.method, "FP32_VARIANTS", ())
        return self.method.variant in own

    def precision(self, asked: str, form: str) -> str:
        """The precision of the encoder: what was asked for, and of "auto" the lowest that passes parity."""
        if asked != "auto":
            return asked
        return "fp32" if form == "ort-cpu" or self.fp16_changes_decisions else "fp16"

    def patched(self, encoder: nn.Module) -> AbstractContextManager[nn.Module]:
        """The encoder patched accordingly, for the length of a `with` block."""
        return patched(encoder, self.blocks, mlp=self.mlp)


def factory(config: ExportConfig) -> Callable[[float | None], Method]:
    """The configured method at any rate."""
    cls = method_class(config.method)
    own = {key: parameter(cls, key, value) for key, value in config.params}
    options: dict[str, Any] = {"variant": config.variant, "compat": config.compat, "prompt_aware": config.prompt_aware}
    return lambda rate: make_method(config.method, rate, **options, **own)


def resolve(config: ExportConfig, geometry: EncoderGeometry) -> Schedule:
    """The schedule a configuration asks for.

    Raises:
        UsageError: unknown names, rates out of range, layers the encoder does not have or that are named twice, or
            options that do not go together.
    """
    from structsam_export.patch.roles import assign

    rates = parse_rate(config.rate)
    make = factory(config)
    blocks: dict[int, Method] = {}
    if rates.groups:
        if config.layers is not None:
            raise UsageError(f"--rate {config.rate} already names its layers. Leave --layers away.")
        for rate, spec in rates.groups:
            method = make(rate)
            for layer in resolve_layers(spec, geometry.depth, geometry.global_layers):
                if layer in blocks:
                    raise UsageError(f"--rate {config.rate} names layer {layer} twice.")
                blocks[layer] = method
    else:
        method = make(rates.everywhere)
        # A grid that shrinks stays small to the end: early blocks first see what there is.
        first = geometry.depth // 4 if method.KIND == "grid" else 0
        spec = f"{first}-{geometry.depth - 1}" if config.layers is None else config.layers
        blocks = dict.fromkeys(resolve_layers(spec, geometry.depth, geometry.global_layers), method)
    mlp = make_mlp(config.mlp, config.mlp_density)
    assign(geometry, blocks, mlp)  # refuses what does not go together
    return Schedule(blocks, method, mlp, config.prompt_aware)
