"""The hosts: model families whose encoder can be patched and exported; one file each, one line here.

A host knows its model's modules and nothing of methods: it shows them as the views of `base.py`, which is all that
`patch` and `trace` work on.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from structsam_export.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from structsam_export.geometry import EncoderGeometry
    from structsam_export.hosts.base import Host

# Class name of the encoder -> "module:Class" of its host. By name, so that no model library need be imported.
HOSTS = {
    "EfficientSamViT": "structsam_export.hosts.efficient_sam:EfficientSam",
    "HQImageEncoder": "structsam_export.hosts.sam_hq:SamHQ",
    "ImageEncoderViT": "structsam_export.hosts.segment_anything:SegmentAnything",
    "TimmBackbone": "structsam_export.hosts.timm_vit:TimmBackbone",
    "TimmClassifier": "structsam_export.hosts.timm_vit:TimmClassifier",
    "TinyViT": "structsam_export.hosts.tiny_vit:TinyViT",
}


def host_of(encoder: nn.Module) -> Host:
    """The host of an encoder; subclasses of a known encoder class count as that class.

    Raises:
        UsageError: no host knows this encoder; the message lists the known classes.
    """
    name = encoder_class(encoder)
    if name is None:
        kind, known = type(encoder), ", ".join(HOSTS)
        raise UsageError(f"Unsupported encoder {kind.__module__}.{kind.__qualname__}. Supported: {known}.")
    module, symbol = HOSTS[name].split(":")
    host: Host = getattr(import_module(module), symbol)()
    return host


def encoder_class(module: Any) -> str | None:
    """The key of HOSTS that a module's class, or one it inherits from, is named by; None if there is none."""
    return next((cls.__name__ for cls in type(module).__mro__ if cls.__name__ in HOSTS), None)


def encoder_of(model: nn.Module) -> nn.Module:
    """The image encoder of a whole model: its first child that a host recognises.

    Raises:
        UsageError: no child is the encoder of a known host.
    """
    found = next((child for child in model.children() if encoder_class(child)), None)
    if found is None:
        known = ", ".join(HOSTS)
        raise UsageError(f"{type(model).__qualname__} has no image encoder of a supported class. Supported: {known}.")
    return found


def check_method(encoder: nn.Module, method: str) -> None:
    """Refuse a method that an encoder's host cannot run.

    Raises:
        UsageError: with the host's reason.
    """
    if why := host_of(encoder).refusal(method):
        raise UsageError(f"--method {method} cannot run in {encoder_class(encoder)}: {why}")


def geometry_of(encoder: nn.Module) -> EncoderGeometry:
    """The sizes of an encoder, read from the module itself.

    Raises:
        UsageError: no host knows this encoder, or it is another project's class of that name.
    """
    return host_of(encoder).geometry(encoder)
