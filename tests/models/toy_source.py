"""A source of weights under names of its own, to prove the interface: one file, and one line in `SOURCES`."""

from __future__ import annotations

from structsam_export.models.reading import Stated


class ToySource:
    """A library that calls the encoder `backbone` and its blocks `stage`."""

    NAME = "toy"
    ANCHOR = "backbone.patch_embed.proj.weight"

    def renamed(self, state, path):
        names = {k: k.replace("backbone.", "image_encoder.").replace(".stage.", ".blocks.") for k in state}
        return {names[k]: v for k, v in state.items()}

    def stated(self, folder):
        return Stated(decoder_heads=4)
