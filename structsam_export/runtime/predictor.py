"""`segment_anything.SamPredictor` on an export folder; `docs/predictor.md` has examples and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from structsam_export.backends.base import DEFAULT, RunOptions
from structsam_export.errors import NoImageError, UsageError, shortened
from structsam_export.folder import ExportFolder
from structsam_export.runtime.embedded import EmbeddedImage, check_image, embedded
from structsam_export.runtime.features import EARLY, embedding_of, named
from structsam_export.runtime.model import Decoded, ExportedModel, open_model
from structsam_export.runtime.prompts import PromptBatch, prompt_batch, prompt_of_photo
from structsam_export.runtime.transforms import ResizeLongestSide, transform_of

Masks = tuple[np.ndarray, np.ndarray, np.ndarray]


class Predictor:
    """Masks from prompts, with the methods and attributes of `SamPredictor`; arrays are NumPy's.

    One predictor holds one current image, as SAM's does. `predict` may be called from several threads at once, and
    `embedding=` lets each thread have an image of its own.

    Args:
        folder: an export folder, or its path. Its files are verified while they are loaded.
        backend: "auto" (the folder's engines for this machine, else ONNX Runtime), the name of a backend, or "eager"
            (the patched model in PyTorch).
        options: how the backend runs the files: threads, provider, precision.
        checkpoint: for "eager": where the weights are now; None: where they were exported from.

    Raises:
        UsageError: unknown backend.
        MissingRuntimeError: the backend is not installed, or its device is not here.
        ArtifactError: a file is missing or was changed, or the folder has no engines for this machine.
    """

    def __init__(
        self,
        folder: str | Path | ExportFolder,
        backend: str = "auto",
        *,
        options: RunOptions = DEFAULT,
        checkpoint: str | None = None,
    ) -> None:
        opened = folder if isinstance(folder, ExportFolder) else ExportFolder.read(Path(folder))
        self.model: ExportedModel = open_model(opened, backend, options, checkpoint)
        self.transform: ResizeLongestSide = transform_of(self.model.preprocessing, self.model.size)
        self._current: EmbeddedImage | None = None

    # ---- Images

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Embed a photo and make it the current one.

        Where the encoder takes prompts (a prompt-aware export), it is only prepared here: `predict` embeds it with its
        prompt.

        Args:
            image: uint8 (H, W, 3).
            image_format: "RGB" or "BGR", the order of its colours.

        Raises:
            ImageError: another type or shape.
            UsageError: another order.
        """
        self.set_images([image], image_format)

    def set_images(self, images: Sequence[np.ndarray], image_format: str = "RGB") -> list[EmbeddedImage]:
        """Embed photos of any sizes, as many an encoder call as were exported (`--batch`); the first becomes current.

        Returns:
            what `set_embedding` and `embedding=` of the other methods take, one for each photo.

        Raises:
            ImageError, UsageError: as `set_image`; also for no photo at all.
        """
        found = self.embed(images, image_format)
        if not found:
            raise UsageError("There is no image to set. Pass at least one.")
        self._current = found[0]
        return found

    def embed(self, images: Sequence[np.ndarray], image_format: str = "RGB") -> list[EmbeddedImage]:
        """As `set_images`, but the current image stays."""
        if image_format not in ("RGB", "BGR"):
            raise UsageError(f"image_format '{shortened(image_format)}' is neither RGB nor BGR.")
        for image in images:
            check_image(image)
        turned = image_format != self.model.image_format
        return embedded(self.model, [image[..., ::-1] if turned else image for image in images])

    def set_embedding(self, embedding: EmbeddedImage) -> None:
        """Make an embedded photo the current one.

        Raises:
            UsageError: it was embedded by another predictor, whose embeddings another decoder would read.
        """
        self._current = self._own(embedding)

    def reset_image(self) -> None:
        """Forget the current image."""
        self._current = None

    # ---- Masks

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        hq_token_only: bool = False,
        embedding: EmbeddedImage | None = None,
    ) -> Masks:
        """Masks of one object.

        Args:
            point_coords: (N, 2), x and y in pixels of the photo.
            point_labels: (N,), 1 foreground, 0 background.
            box: (4,), x0 y0 x1 y1 in pixels of the photo.
            mask_input: float (1, 4h, 4w), logits of an earlier call.
            multimask_output: three masks rather than one.
            return_logits: logits instead of masks.
            hq_token_only: of a SAM-HQ, its own mask alone, not added to SAM's.
            embedding: the photo; None: the current one.

        Returns:
            masks bool, or logits float32, (C, H, W); the model's own guess of each mask's IoU, float32 (C,); logits
            float32 (C, 4h, 4w), a `mask_input` for later calls.

        Raises:
            NoImageError: no image was set.
            PromptError: arrays that are no prompt, more points than an engine takes, or no prompt at all.
        """
        image = self._image(embedding)
        arrays = prompt_of_photo(self.transform, image.original_size, point_coords, point_labels, box, mask_input)
        prompt = self._prompts(image, *arrays)
        found = self._finish(image, self._decode(image, prompt, multimask_output, hq_token_only), return_logits)
        return found[0][0], found[1][0], found[2][0]

    def predict_batch(
        self,
        point_coords: np.ndarray | None,
        point_labels: np.ndarray | None,
        boxes: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        hq_token_only: bool = False,
        embedding: EmbeddedImage | None = None,
    ) -> Masks:
        """Masks of P objects at once: `SamPredictor.predict_torch` on arrays. Coordinates are in encoder pixels, as
        `transform.apply_coords` and `apply_boxes` make them.

        Args:
            point_coords, point_labels: (P, N, 2) and (P, N).
            boxes: (P, 4).
            mask_input: (P, 1, 4h, 4w).
            multimask_output, return_logits, hq_token_only, embedding: as in `predict`.

        Returns:
            as `predict`, with P first: (P, C, H, W), (P, C), (P, C, 4h, 4w).

        Raises:
            NoImageError, PromptError: as `predict`.
        """
        image = self._image(embedding)
        prompts = (point_coords, point_labels, boxes, mask_input, multimask_output)
        found = self.predict_low_res(*prompts, hq_token_only=hq_token_only, embedding=image)
        return self._finish(image, found, return_logits)

    def predict_low_res(
        self,
        point_coords: np.ndarray | None,
        point_labels: np.ndarray | None,
        boxes: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        *,
        hq_token_only: bool = False,
        embedding: EmbeddedImage | None = None,
    ) -> Decoded:
        """As `predict_batch`, but only what the decoder gives: logits (P, C, 4h, 4w) and guesses of IoU (P, C)."""
        image = self._image(embedding)
        prompts = self._prompts(image, point_coords, point_labels, boxes, mask_input)
        return self._decode(image, prompts, multimask_output, hq_token_only)

    def _prompts(
        self,
        image: EmbeddedImage,
        points: np.ndarray | None,
        labels: np.ndarray | None,
        boxes: np.ndarray | None,
        masks: np.ndarray | None,
    ) -> PromptBatch:
        side = self.model.low_res_shape
        return prompt_batch(points, labels, boxes, masks, side, with_region=self.model.prompt_aware)

    def _decode(self, image: EmbeddedImage, prompts: PromptBatch, multimask: bool, hq_only: bool) -> Decoded:
        coords, labels, masks = prompts.coords, prompts.labels, prompts.masks
        if prompts.regions is not None:  # a prompt-aware export: each on an embedding of its own
            each = [
                self.model.decode(
                    image.features_for(prompts.regions[i]),
                    coords[i : i + 1],
                    labels[i : i + 1],
                    None if masks is None else masks[i : i + 1],
                    hq_token_only=hq_only,
                )
                for i in range(len(coords))
            ]
            found = Decoded(np.concatenate([d.low_res for d in each]), np.concatenate([d.iou for d in each]))
        else:
            assert image.features is not None
            found = self.model.decode(image.features, coords, labels, masks, hq_token_only=hq_only)
        chosen = slice(1, None) if multimask else slice(0, 1)
        return Decoded(found.low_res[:, chosen], found.iou[:, chosen])

    def _finish(self, image: EmbeddedImage, found: Decoded, return_logits: bool) -> Masks:
        masks = image.upscaled(found.low_res) if return_logits else image.masks(found.low_res)
        return masks, found.iou, found.low_res

    # ---- What SamPredictor tells of itself

    def get_image_embedding(self) -> np.ndarray:
        """The current image's embedding, float32 (1, C, h, w).

        Raises:
            NoImageError: no image was set.
            UsageError: the encoder takes prompts, so that no embedding is the image's alone.
        """
        features = self._image(None).features
        if features is None:
            raise UsageError(
                "A prompt-aware export has no embedding of an image alone: each belongs to its prompt, and predict "
                "makes it. Export without --prompt-aware to share one among prompts."
            )
        return embedding_of(features)

    @property
    def features(self) -> np.ndarray | None:
        """The current image's embedding, float32 (1, C, h, w); None without one, or where it belongs to a prompt."""
        current = self._current
        return None if current is None or current.features is None else embedding_of(current.features)

    @property
    def interm_features(self) -> np.ndarray | None:
        """Of a SAM-HQ, the current image's tokens after the first global block, float32 (1, h, w, D); else None."""
        current = self._current
        return None if current is None or current.features is None else named(current.features).get(EARLY)

    @property
    def is_image_set(self) -> bool:
        return self._current is not None

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the current photo; NoImageError without one."""
        return self._image(None).original_size

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the current photo in the encoder's square; NoImageError without one."""
        return self._image(None).input_size

    @property
    def mask_threshold(self) -> float:
        """Logits above it are the object; `model.mask_threshold` is the same number."""
        return self.model.mask_threshold

    @mask_threshold.setter
    def mask_threshold(self, value: float) -> None:
        self.model.mask_threshold = value

    @property
    def device(self) -> str:
        """Where arrays go in and come out, "cpu", whatever computes; `model.backend` says what does."""
        return self.model.device

    # ---- Life

    def close(self) -> None:
        """Free the model. The predictor cannot be used afterwards."""
        self._current = None
        self.model.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _image(self, embedding: EmbeddedImage | None) -> EmbeddedImage:
        image = self._current if embedding is None else self._own(embedding)
        if image is None:
            raise NoImageError("An image must be set with .set_image(...) before mask prediction.")
        return image

    def _own(self, embedding: EmbeddedImage) -> EmbeddedImage:
        if embedding.model is not self.model:
            raise UsageError("This image was embedded by another predictor. Embed it with this one.")
        return embedding
