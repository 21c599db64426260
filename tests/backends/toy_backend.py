"""A backend of another make: its "engines" are copies of the ONNX file, which ONNX Runtime runs."""

from __future__ import annotations

import shutil

from structsam_export.backends.base import DEFAULT, Backend, BenchRunner, Engine, parts_of
from structsam_export.backends.onnxruntime import SessionRunner
from structsam_export.files import sha256_of


class Toy(Backend):
    NAME = "toy"
    MODULE = "onnxruntime"
    INSTALL = "nothing"
    RUNNERS = {"toy": BenchRunner("a copy of the ONNX file")}

    def version(self):
        return "1.0"

    def check_run(self):
        self.check_installed()

    def targets(self, text):
        return ("here",) if text == "auto" else parts_of(text, ("here", "there"), "Toy")

    def build(self, onnx, folder, part, target, profile):
        name = f"{part}.toy-1.0-{target}.engine"
        path = shutil.copy(onnx, folder / name)
        return Engine(name, part, "toy", "1.0", target, sha256_of(path), path.stat().st_size)

    def fits(self, engine):
        return engine.backend == "toy" and engine.sm == "here"

    def runner(self, path, label, options=DEFAULT):
        return SessionRunner(path, label, options)

    def can(self):
        return "build and run"
