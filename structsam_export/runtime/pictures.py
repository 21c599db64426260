"""The one reader of pictures, for photos of a command and of data sets alike. `docs/datasets.md` has its rules.

turned       photos and masks alike are turned as their EXIF orientation says, as viewers show them
8 bits       as stored; palette, CMYK and grey become RGB; an alpha channel is dropped, colours are kept
more bits    16-bit, signed and float values, grey or colour, are scaled to 8 bits between the 0.5th and 99.5th
             percentile of what is above zero, all channels alike, as MedSAM prepares 2D scans; of all values where
             some are below zero
one page     files with several pages or frames are refused, as is more than Pillow's limit of pixels
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from structsam_export.errors import BadInputError, ImageError
from structsam_export.reading import check_file
from structsam_export.runtime import tiff

if TYPE_CHECKING:
    from PIL.Image import Image

    from structsam_export.runtime.tiff import Samples

DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
# Raw modes of 16-bit colours, of which Pillow keeps the upper bytes -> raw modes that give the lower ones.
LOWER = {f"{mode};16{a}": f"{mode};16{b}" for mode in ("RGB", "RGBA", "RGBX") for a, b in ("BL", "LB")}
NATIVE = "B" if np.little_endian else "L"
STRAY = 1e38  # values beyond are no measurements


def read_image(path: str | Path, what: str = "Photo", kind: type[BadInputError] = ImageError) -> np.ndarray:
    """Read a photo as uint8 RGB (H, W, 3); see the module for how.

    Args:
        path: the file.
        what: what it is, for messages.
        kind: the error to raise.

    Raises:
        ImageError: missing, unreadable, nothing Pillow can decode, several pages, or too many pixels.
    """
    path = Path(path)
    with opened(path, what, kind, odd=True) as image:
        if not isinstance(image, tiff.Samples):
            turned = upright(image)
            if turned.mode in DEEP:
                return eight_bits(np.asarray(turned))
            if turned.mode in ("RGB", "RGBA") and (low := _lower_bytes(path, image)) is not None:
                high = np.asarray(turned)
                grey = low.shape[2] == 1
                return eight_bits(high[..., : 1 if grey else 3].astype(np.uint16) << 8 | low)
            return np.array(turned.convert("RGB"))
        values = tiff.stored(path, image)
        colour = image.tag(tiff.PHOTOMETRIC, 1) == 2
        if values.shape[2] not in ((3, 4) if colour else (1, 2)):
            raise ValueError(f"it has {image}")
        return eight_bits(values[..., : 3 if colour else 1])


def image_size(path: Path, what: str = "Photo", kind: type[BadInputError] = ImageError) -> tuple[int, int]:
    """(H, W) of a photo as `read_image` gives it, read from its header.

    Raises:
        ImageError: as `read_image`.
    """
    h, w, sideways = header(path, what, kind)
    return (w, h) if sideways else (h, w)


def is_sideways(path: Path, what: str = "Photo", kind: type[BadInputError] = ImageError) -> bool:
    """Whether a photo is stored with width and height swapped, and turned by its EXIF orientation.

    Raises:
        ImageError: as `read_image`.
    """
    return header(path, what, kind)[2]


def header(path: Path, what: str, kind: type[BadInputError]) -> tuple[int, int, bool]:
    """H and W of a photo as stored, and whether turning it swaps them.

    Raises:
        BadInputError: as `read_image`.
    """
    with opened(path, what, kind, decode=False, odd=True) as image:
        if isinstance(image, tiff.Samples):
            return *image.shape[:2], image.tag(ORIENTATION, 1) in SIDEWAYS
        (w, h), sideways = image.size, orientation_of(image) in SIDEWAYS
        return (w, h, True) if sideways and image.format == "TIFF" else (h, w, sideways)  # Pillow turns TIFFs itself


@contextmanager
def opened(
    path: Path, what: str, kind: type[BadInputError], *, decode: bool = True, odd: bool = False
) -> Iterator[Image | Samples]:
    """A decoded picture, or only its header.

    Args:
        path, what, kind: see `read_image`.
        decode: whether to decode it.
        odd: give a TIFF that Pillow does not read faithfully as `tiff.Samples`; without, it is refused.

    Raises:
        BadInputError: as `read_image`, also where the body of the `with` block raises a ValueError or OSError.
    """
    from PIL import Image, UnidentifiedImageError

    check_file(path, what, kind)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # from twice as many on it is an error
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged EXIF
    try:
        samples, pages = tiff.pages(path)
        image: Image.Image | Samples
        if samples is None or samples.left_to_pillow:
            image = Image.open(path)
            if samples is None and image.format != "MPO":  # a phone's photo, with previews or depth behind it
                pages = getattr(image, "n_frames", 1)
            if decode and pages == 1:
                image.load()
        elif odd:
            image = samples
            _check_pixels(samples.shape[0] * samples.shape[1], path, what, kind)
        else:
            raise ValueError(f"a TIFF with {samples}")
    except (MemoryError, BadInputError):
        raise
    except UnidentifiedImageError:
        raise kind(f"{what} {path} is not a picture that can be read. Pass a JPEG, PNG, WebP or TIFF file.") from None
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        _check_pixels(int(found[0]) if found else 1 << 60, path, what, kind)
        raise
    except Exception as error:  # decoders raise anything when a file is damaged
        raise kind(f"{what} {path} cannot be decoded ({error}). Copy it again, or save it as an 8-bit PNG.") from error
    try:
        if pages > 1:
            raise kind(f"{what} {path} has {pages} pages. Save each as a file of its own.")
        yield image
    except (ValueError, OSError, KeyError, SyntaxError) as error:
        raise kind(f"{what} {path} cannot be used ({error}). Save it as an 8-bit PNG.") from error
    finally:
        if not isinstance(image, tiff.Samples):
            image.close()


def _check_pixels(count: int, path: Path, what: str, kind: type[BadInputError]) -> None:
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None and count > (most := 2 * Image.MAX_IMAGE_PIXELS):
        raise kind(
            f"{what} {path} has {count / 1e6:.0f} million pixels; more than {most / 1e6:.0f} million are not read, as "
            "small files can claim to be huge. Scale it down, or cut it into parts."
        )


def orientation_of(image: Image) -> int:
    """EXIF's orientation; 1 where there is none, or nothing that can be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # EXIF is written by everything; a photo with a broken one is still a photo
        return 1


def upright(image: Image) -> Image:
    """A decoded picture turned as its EXIF says."""
    from PIL.Image import Transpose as T

    turns = (
        None,
        None,
        T.FLIP_LEFT_RIGHT,
        T.ROTATE_180,
        T.FLIP_TOP_BOTTOM,
        T.TRANSPOSE,
        T.ROTATE_270,
        T.TRANSVERSE,
        T.ROTATE_90,
    )
    how = orientation_of(image)
    turn = turns[how] if 0 <= how < len(turns) else None
    return image if turn is None else image.transpose(turn)


def loaded(image: Image) -> Image:
    """A picture, decoded; Pillow turns TIFFs while it does."""
    image.load()
    return image


def _lower_bytes(path: Path, decoded: Image) -> np.ndarray | None:
    """The lower bytes of 16-bit colours, uint8 (H, W, 3), or of grey ones with alpha, (H, W, 1); None for 8 bits."""
    from PIL import Image

    if decoded.format not in ("PNG", "TIFF"):
        return None
    with Image.open(path) as image:
        tiles = [(tile, tile.args if isinstance(tile.args, tuple) else (tile.args,)) for tile in image.tile]
        modes = {args[0] for _, args in tiles}
        raw = str(modes.pop()) if len(modes) == 1 else ""
        native = raw[:-1] + NATIVE if raw.endswith(";16N") else raw
        lower = "RGBA" if raw == "LA;16B" else native if native != raw else LOWER.get(raw)
        if lower is None:
            return None
        image.tile = [tile._replace(args=(lower, *args[1:]) if len(args) > 1 else lower) for tile, args in tiles]
        bytes_ = np.asarray(upright(loaded(image)))
    return bytes_[..., 1:2] if raw == "LA;16B" else bytes_[..., :3]


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Values of any range (H, W) or (H, W, 1 or 3) as uint8 (H, W, 3), bytes as they are; see the module for how."""
    values = values if values.ndim == 3 else values[..., None]
    if values.dtype == np.uint8:
        return np.repeat(values, 3 // values.shape[2], axis=2)
    values = np.nan_to_num(values, nan=0, posinf=0, neginf=0) if values.dtype.kind == "f" else values
    values = (
        np.clip(values, -STRAY, STRAY).astype(np.float32) if values.dtype.itemsize > 4 else values.astype(np.float32)
    )
    signed = bool((values < 0).any())
    inside = values if signed else values[values > 0]
    low, high = (float(v) for v in np.percentile(inside, (0.5, 99.5))) if inside.size else (0.0, 1.0)
    if high <= low:
        low, high = min(low, 0.0), max(high, 1.0)
    scaled = (np.clip(values, low, high) - low) / (high - low) * 255
    scaled = scaled if signed else np.where(values > 0, scaled, 0)
    return np.repeat(np.round(scaled).astype(np.uint8), 3 // values.shape[2], axis=2)
