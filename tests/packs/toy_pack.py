"""A pack of another make: the decoder as it is, under a name of its own, with an option."""

from __future__ import annotations

import shutil

from structsam_export.packs.base import Limits, Option, Pack


class Toy(Pack):
    NAME = "toy"
    TITLE = "only.onnx"
    CLIENTS = "Toys"
    LIMITS = Limits(sizes=None, precisions=("fp32",))
    OPTIONS = {"colour": Option(("red", "blue"), "Of the toy.")}

    def write(self, source, folder):
        shutil.copyfile(source.folder.onnx("decoder"), folder / f"{self.options['colour']}.onnx")
        if self.options["colour"] == "blue":
            raise KeyboardInterrupt

    def readme(self, source, folder):
        return f"{folder}: made by structsam-export from {source.name}\n"
