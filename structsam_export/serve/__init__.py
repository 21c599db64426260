"""An export folder on a machine's own address: a JSON API, X-AnyLabeling's protocol, and a page to click on.

`docs/serving.md` has the API and the limits. Nothing here is imported before it is asked for: the web libraries are an
extra, and `--help` should not wait for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from structsam_export.errors import MissingRuntimeError

if TYPE_CHECKING:
    from structsam_export.serve.settings import Settings

LIBRARIES = ("starlette", "uvicorn", "pydantic", "prometheus_client")


def check_installed() -> None:
    """Refuse to start without the libraries of the extra.

    Raises:
        MissingRuntimeError: with what to install.
    """
    from importlib.util import find_spec

    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise MissingRuntimeError(
            f"serve needs {', '.join(missing)}. Install it: pip install 'structsam-export[serve]'."
        )


def run(folders: Sequence[Path], settings: Settings, backend: str = "auto") -> None:
    """Serve export folders until the process is told to stop; what was accepted by then is answered.

    Args:
        folders: one, or two to compare.
        settings: address and limits.
        backend: as `runtime.Predictor`.

    Raises:
        UsageError: settings that contradict each other, or the same folder twice.
        MissingRuntimeError: the extra, or a backend, is not installed.
        ArtifactError: a folder is damaged, or no export.
        OutputError: the address is taken.
    """
    check_installed()
    settings.check()
    from structsam_export.serve.exports import opened
    from structsam_export.serve.server import serve

    with opened(folders, backend) as exports:
        serve(exports, settings)
