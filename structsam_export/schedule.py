"""What is patched where: a method for each block and one MLP policy, resolved against an encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from structsam_export.config import ExportConfig
from structsam_export.errors import UsageError
from structsam_export.methods import Method, make_method, method_class, parameter
from structsam_export.methods.mlp_layers import PoliciesByBlock, make_policies
from structsam_export.methods.none import NoMerge
from structsam_export.methods.rates import parse_rate
from structsam_export.patch import apply_roles, remove_patch, resolve_layers
from structsam_export.roles import Role, assign

if TYPE_CHECKING:
    from torch import nn

    from structsam_export.geometry import EncoderGeometry
    from structsam_export.roles import MLPAssignment, MLPPolicy


@dataclass(frozen=True)
class Request:
    """A configuration's method and MLP policy, checked as far as that goes without an encoder.

    Args:
        config: the configuration.
        methods: the method at each rate asked for, with the layers it is for as text; None: `--layers`, or the
            method's own.
        mlp: policies of `methods.mlp` (None: dense MLPs), each with the layers it is for as text; None: all it can.
    """

    config: ExportConfig
    methods: tuple[tuple[Method, str | None], ...]
    mlp: tuple[tuple[MLPPolicy | None, str | None], ...]

    @classmethod
    def of(cls, config: ExportConfig) -> Request:
        """Read a configuration.

        Raises:
            UsageError: unknown names, rates or parameters out of range, or options that do not go together.
        """
        own = {key: parameter(method_class(config.method), key, value) for key, value in config.params}
        options: dict[str, Any] = {
            "variant": config.variant,
            "compat": config.compat,
            "prompt_aware": config.prompt_aware,
        }
        rates = parse_rate(config.rate)
        groups = rates.groups or ((rates.everywhere, None),)
        methods = tuple((make_method(config.method, rate, **options, **own), layers) for rate, layers in groups)
        if rates.groups and config.layers is not None:
            raise UsageError(f"--rate {config.rate} already names its layers. Leave --layers away.")
        return cls(config, methods, make_policies(config.mlp, config.mlp_density))

    @property
    def dense(self) -> bool:
        """Whether nothing is asked for that would change a block of any encoder."""
        return all(policy is None for policy, _ in self.mlp) and all(
            method.NAME == NoMerge.NAME for method, _ in self.methods
        )

    def blocks(self, geometry: EncoderGeometry) -> dict[int, Method]:
        """The method of each block of an encoder.

        Raises:
            UsageError: layers the encoder does not have, or that are named twice.
        """
        blocks: dict[int, Method] = {}
        if not geometry.depth:  # the host has refused all but dense requests
            return blocks
        for method, spec in self.methods:
            if spec is None:
                spec = self.config.layers
            if spec is None:
                spec = f"{method.first_layer(geometry.depth)}-{geometry.depth - 1}"
            for layer in resolve_layers(spec, geometry.depth, geometry.global_layers):
                if layer in blocks:
                    raise UsageError(f"--rate {self.config.rate} names layer {layer} twice.")
                blocks[layer] = method
        return blocks

    def policies(self, geometry: EncoderGeometry) -> MLPAssignment | None:
        """The MLP policy of an encoder, or its policies by block.

        Raises:
            UsageError: layers the encoder does not have, or that are named twice.
        """
        if self.mlp[0][1] is None:
            return self.mlp[0][0]
        taken: set[int] = set()
        parts = []
        for policy, spec in self.mlp:
            layers = frozenset(resolve_layers(str(spec), geometry.depth, geometry.global_layers))
            if twice := taken & layers:
                raise UsageError(f"--mlp {self.config.mlp} names layer {min(twice)} twice.")
            taken |= layers
            if policy is not None:
                parts.append((policy, layers))
        return PoliciesByBlock(tuple(parts)) if parts else None

    def resolve(self, geometry: EncoderGeometry) -> Schedule:
        """The schedule on an encoder.

        Raises:
            UsageError: its blocks do not allow what is asked for.
        """
        blocks = self.blocks(geometry)
        mlp = self.policies(geometry)
        roles = assign(geometry, blocks, mlp)
        return Schedule(blocks, self.methods[-1][0], mlp, self.config.prompt_aware, roles)


@dataclass(frozen=True)
class Schedule:
    """What happens in each block of one encoder.

    Args:
        blocks: method of each block, all of one class.
        method: the method, at the last rate named.
        mlp: policy of `methods.mlp`, or policies by block, or None.
        prompt_aware: the encoder also takes the prompt.
        roles: what each block that changes does.
    """

    blocks: dict[int, Method]
    method: Method
    mlp: MLPAssignment | None = None
    prompt_aware: bool = False
    roles: dict[int, Role] = field(default_factory=dict)

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
        return self.method.variant in self.method.FP32_VARIANTS

    def precision(self, asked: str, form: str) -> str:
        """The precision of the encoder: what was asked for, and of "auto" the lowest that passes parity."""
        if asked != "auto":
            return asked
        return "fp32" if form == "ort-cpu" or self.fp16_changes_decisions else "fp16"

    @contextmanager
    def patched(self, encoder: nn.Module) -> Iterator[nn.Module]:
        """The encoder with these roles for the length of a `with` block; removed even after an exception."""
        apply_roles(encoder, self.roles)
        try:
            yield encoder
        finally:
            remove_patch(encoder)


def resolve(config: ExportConfig, geometry: EncoderGeometry) -> Schedule:
    """The schedule a configuration asks for.

    Raises:
        UsageError: unknown names, rates out of range, layers the encoder does not have or that are named twice, or
            options that do not go together.
    """
    return Request.of(config).resolve(geometry)
