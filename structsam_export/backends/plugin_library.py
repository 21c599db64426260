"""What an engine with plugins needs beside it: the library that registers them, and their kernels; both are code.

`build --plugin-library` puts them into one archive beside the engine, `<engine>.plugins.zip`, a companion file of it:
the manifest has its SHA-256, and `ExportFolder.verified` refuses an engine whose archive was changed, or was put there
by somebody else. Only then is it unpacked, into a folder of this process, and the library loaded from there.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from structsam_export.errors import ArtifactError, UsageError
from structsam_export.files import disk_errors, sha256_of
from structsam_export.paths import is_bare

BESIDE = "{name}.plugins.zip"
LIBRARY, KERNELS = "library.so", "kernels.txt"
VARIABLE = "STRUCTSAM_KERNELS"  # where the library looks for its kernels (plugins/registration/v3/kernels.h)
MOST = 1 << 30  # bytes of what is unpacked
ELF = b"\x7fELF"
_loaded: str | None = None  # SHA-256 of what this process has loaded


def archive(library: Path, kernels: Path | None, target: Path) -> None:
    """Pack a plugin library, and the folder of kernels that `scripts/plugin_kernels` wrote, if it needs one.

    Raises:
        ArtifactError: no library, or no folder of kernels.
    """
    if not library.is_file() or library.open("rb").read(4) != ELF:
        raise ArtifactError(f"{library} is no shared library. Build it: plugins/README.md says how.")
    files = [(library, LIBRARY)]
    if kernels is not None:
        if not (kernels / KERNELS).is_file():
            raise ArtifactError(
                f"{kernels} has no {KERNELS}. Make it: python scripts/plugin_kernels ENCODER.onnx --sm SM"
            )
        cubins = sorted(kernels.glob("*.cubin"))
        files += [(path, path.name) for path in (kernels / KERNELS, *cubins)]
    with disk_errors(target), zipfile.ZipFile(target, "w") as made:
        for path, name in files:
            made.write(path, name)


def load_beside(trt: Any, engine: Path) -> None:
    """Load what lies beside a verified engine; nothing if it needs nothing. Once for each process.

    Raises:
        ArtifactError: the archive is none of ours, or TensorRT refuses the library.
        UsageError: this process has loaded another library.
    """
    packed = engine.with_name(BESIDE.format(name=engine.name))
    if packed.is_file():
        load(trt, packed)


def load(trt: Any, packed: Path) -> None:
    """`load_beside` of an archive."""
    global _loaded
    digest = sha256_of(packed)
    if _loaded == digest:
        return
    if _loaded is not None:
        raise UsageError(f"One process can load one plugin library only. Start a new one for {packed}.")
    with disk_errors(Path(tempfile.gettempdir()), "set TMPDIR to another folder"):
        place = Path(tempfile.mkdtemp(prefix="structsam-library-"))  # readable by this user alone
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        unpack(packed, place)
    if (place / KERNELS).is_file():
        os.environ[VARIABLE] = str(place)
    if not registered(trt, place / LIBRARY):
        raise ArtifactError(
            f"{trt.__name__} refuses the plugin library in {packed}: its messages are above. Build the library against "
            "this version (plugins/README.md), then the engine again."
        )
    _loaded = digest


def unpack(packed: Path, place: Path) -> None:
    """Unpack an archive of `archive`.

    Raises:
        ArtifactError: it is no such archive.
    """
    try:
        with zipfile.ZipFile(packed) as opened:
            infos = opened.infolist()
            if sum(info.file_size for info in infos) > MOST or not all(is_bare(info.filename) for info in infos):
                raise ArtifactError(f"{packed} holds paths, or more than {MOST >> 30} GB. Build the engine again.")
            for info in infos:
                (place / info.filename).write_bytes(opened.read(info))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ArtifactError(f"{packed} is no archive of a plugin library ({error}). Build the engine again.") from error
    if not (place / LIBRARY).is_file():
        raise ArtifactError(f"{packed} has no {LIBRARY}. Build the engine again.")


def registered(trt: Any, library: Path) -> bool:
    """Let TensorRT's registry load a library; whether it did. Here, and nowhere else, is code of a plugin loaded."""
    return trt.get_plugin_registry().load_library(str(library)) is not None
