"""Runners of polygraphy behind our interface."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam_export.backends.base import Runner

if TYPE_CHECKING:
    from structsam_export.backends.base import Array


class PolygraphyRunner(Runner):
    """A polygraphy runner; `make` creates it when it is opened."""

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        super().__init__(name)
        self._make = make
        self._runner: Any = None

    def open(self) -> None:
        hush()
        self._runner = self._make()
        self._runner.activate()
        metadata = self._runner.get_input_metadata()
        self.inputs = {name: tuple(n if isinstance(n, int) else 0 for n in m.shape) for name, m in metadata.items()}

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        outputs = self._runner.infer(dict(feed))
        self.seconds = float(self._runner.last_inference_time())
        return {name: np.array(value) for name, value in outputs.items()}  # copies: runners reuse their buffers

    def close(self) -> None:
        if self._runner is not None:
            self._runner.deactivate()
            self._runner = None


def hush() -> None:
    """Polygraphy's notes would break the progress bar, and its thresholds are not our gates; real errors are raised."""
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = {"": G_LOGGER.CRITICAL}


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send what native code prints to stdout to stderr, so that `--json` stays clean."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
