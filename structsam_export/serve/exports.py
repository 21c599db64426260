"""The exports that are served: loaded once, verified while they are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from structsam_export.errors import UsageError
from structsam_export.folder import ExportFolder, companion, onnx_name
from structsam_export.runtime import Predictor

# Whether the package has ONNX Runtime's WebAssembly (scripts/page_vendor); a checkout may leave it out.
VENDORED = (Path(__file__).parent / "page" / "vendor" / "vendor.json").is_file()


@dataclass(frozen=True)
class Served:
    """An export, open.

    Args:
        name: what clients call it.
        predictor: its model, loaded.
        folder: where it came from.
    """

    name: str
    predictor: Predictor
    folder: ExportFolder

    def decoder_name(self) -> str | None:
        """The file that a browser can decode with; None where there is no such file.

        An embedding of a prompt-aware export belongs to its prompt, and weights beside a graph are out of reach.
        """
        name = onnx_name("decoder")
        beside = companion(name) in self.folder.manifest.files
        return None if beside or self.predictor.model.prompt_aware or not VENDORED else name

    def about(self) -> dict[str, Any]:
        """What clients are told of it, as plain values."""
        model, config = self.predictor.model, self.folder.config
        return {
            "name": self.name,
            "method": config.method,
            "rate": config.rate,
            "precision": config.precision,
            "backend": model.backend,
            "image_size": model.size,
            "prompt_aware": model.prompt_aware,
            "preprocessing": model.preprocessing,
            "low_res": list(model.low_res_shape),
            "mask_threshold": model.mask_threshold,
            "token_maps": config.method != "none" and not model.prompt_aware,
            "browser_decoder": self.decoder_name() is not None,
            "passed": self.folder.manifest.results.passed,
        }


@contextmanager
def opened(folders: Sequence[Path], backend: str = "auto") -> Iterator[dict[str, Served]]:
    """Load export folders; by name, in order, the first being what is served where none is named.

    Raises:
        UsageError: a folder is given twice.
        ArtifactError, MissingRuntimeError: see `runtime.Predictor`.
    """
    if len({folder.absolute().resolve() for folder in folders}) < len(folders):
        raise UsageError("Both folders are the same. Pass another one to compare with.")
    with ExitStack() as stack:
        found: dict[str, Served] = {}
        for folder in folders:
            export = ExportFolder.read(folder)
            predictor = stack.enter_context(Predictor(export, backend))
            name = folder.absolute().name or "export"
            while name in found:
                name += "-2"
            found[name] = Served(name, predictor, export)
        yield found
