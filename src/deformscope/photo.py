"""Photos of any kind as one thing: upright RGB uint8 arrays ``[h w 3]``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from .errors import DeformscopeError, warnings_ignored

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Photo = Union[str, "os.PathLike[str]", "Image.Image", np.ndarray, "Tensor"]

MOST_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: a small file can unpack to many gigabytes."""
LARGE = 10_000_000
"""Pixels above which JPEG and PNG files are decoded by torchvision: the same values, without a second copy."""
STRIP_ROWS = 512
ORIENTATION, SAMPLE_FORMAT = 0x0112, 339
"""Tags of EXIF and TIFF."""
# fmt: off
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".avifs", ".gif", ".tif", ".tiff",
    ".bmp", ".dib", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga",
    ".pcx", ".sgi", ".qoi", ".psd", ".dds",
)
# fmt: on
"""Of the files in a folder that are photos: what Pillow reads, but for icons, drawings, documents and data."""


def read(photo: Photo) -> np.ndarray:
    """A photo as an upright RGB uint8 array ``[h w 3]``.

    Takes a path, a PIL image, a uint8 ``[h w 3]`` (or grey ``[h w]``, or RGBA) array, or a ``[3 h w]`` tensor, uint8
    or floats in 0..1. EXIF orientation is applied. By the image's mode in Pillow:

    ======================================  =====================================================================
    1, L, P, RGB, CMYK, YCbCr, LAB, HSV     Pillow's conversion to RGB
    LA, PA, RGBA, La, RGBa, transparency    the same, on white
    I;16 (any byte order), I, F             grey of an unknown range: from the darkest to the brightest value
    ======================================  =====================================================================

    Of the last, the 0.1st percentile of the values becomes black and the 99.9th white, so that the photo looks the same
    in 12, 16 or 32 bits and in floats of any unit; NaN becomes black. Colours of 16 bits are cut to 8 by Pillow.
    Raises DeformscopeError, naming the file, when the photo cannot be read.
    """
    from PIL import Image

    if isinstance(photo, (str, os.PathLike)):
        return _from_file(Path(photo))
    if isinstance(photo, Image.Image):
        return _from_image(photo)
    if isinstance(photo, np.ndarray):
        return _from_array(photo)
    if hasattr(photo, "detach"):
        return _from_tensor(photo)
    raise DeformscopeError(
        f"photo of type {type(photo).__name__}: expected a path, a PIL image, a uint8 [h w 3] array or a [3 h w] tensor"
    )


def as_rgb(photo: Photo) -> np.ndarray:
    """:func:`read`, but an RGB uint8 array ``[h w 3]`` is returned itself, where :func:`read` copies it."""
    ready = isinstance(photo, np.ndarray) and photo.dtype == np.uint8 and photo.shape[2:] == (3,) and photo.size
    return photo if isinstance(photo, np.ndarray) and ready and photo.flags.writeable else read(photo)


def find(paths: list[Path]) -> list[Path]:
    """The photos that ``paths`` name: files as they are, folders as the photos inside them (sorted, recursively).

    Hidden files and folders are left out; so are, by their name, the ``._photo.jpg`` that macOS puts beside a photo on
    other systems' disks.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                p
                for p in path.rglob("*")
                if p.suffix.lower() in SUFFIXES
                and not any(part.startswith(".") for part in p.relative_to(path).parts)
                and p.is_file()
            )
            if not inside:
                raise DeformscopeError(
                    f"{path}: no photo in this folder; expected files ending in {', '.join(SUFFIXES[:9])} …"
                )
            found += inside
        else:
            found.append(path)
    return found


def _from_file(path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    if path.is_dir():
        raise DeformscopeError(f"{path}: a folder, where one photo was expected")
    if not path.exists():
        raise DeformscopeError(f"{path}: no such file; check the path")
    try:
        with warnings_ignored(), Image.open(path) as image:  # of damage beside the pixels, such as in EXIF
            large = LARGE < image.width * image.height <= MOST_PIXELS
            decoded = _decoded(path, image) if large else None
            return _from_image(image) if decoded is None else decoded
    except DeformscopeError as error:
        raise DeformscopeError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise DeformscopeError(f"{path}: not an image that can be read; expected a JPEG, PNG, WebP, TIFF…") from None
    except Image.DecompressionBombError:
        raise DeformscopeError(f"{path}: larger than {MOST_PIXELS / 1e6:.0f} megapixels; shrink it first") from None
    except PermissionError:
        raise DeformscopeError(f"{path}: may not be read; check the file's permissions") from None
    except Exception as error:  # Pillow's readers raise errors of any kind for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DeformscopeError(f"{path}: damaged or cut off ({reason}); get the file again") from None


def _decoded(path: Path, image: Image.Image) -> np.ndarray | None:
    """A large upright RGB file of a JPEG or PNG, decoded without a copy; None for others, and for damaged ones."""
    plain = image.mode == "RGB" and "transparency" not in image.info and _turn(image) is None
    if not plain or image.format not in ("JPEG", "MPO", "PNG"):
        return None
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg, decode_png

    decode = decode_png if image.format == "PNG" else decode_jpeg
    try:
        pixels = decode(torch.from_numpy(np.fromfile(path, np.uint8)), ImageReadMode.UNCHANGED)
    except RuntimeError:  # Pillow says what is wrong; or torchvision was built without this format
        return None
    array = pixels.permute(1, 2, 0).numpy()
    return array if array.dtype == np.uint8 and array.shape == (image.height, image.width, 3) else None


def _from_image(image: Image.Image) -> np.ndarray:
    from PIL import Image

    if image.width * image.height > MOST_PIXELS:
        raise DeformscopeError(
            f"{image.width}×{image.height} px: expected at most {MOST_PIXELS / 1e6:.0f} megapixels; shrink it first"
        )
    unsigned = _unsigned(image)
    image = _upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        return _stretched(values.view(np.uint32) if unsigned else values)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(ground, layer)
    array = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP_ROWS):  # Pillow makes two more copies of what it hands over
        strip = image.crop((0, top, image.width, min(top + STRIP_ROWS, image.height)))
        array[top : top + STRIP_ROWS] = np.asarray(strip.convert("RGB"))
    return array


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How the camera's orientation turns the image; None: not, or that cannot be read."""
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        # Not ImageOps.exif_transpose, which writes all tags anew and fails where one of them is badly typed.
        return turns.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # hostile tags raise errors of any kind, and the pixels can still be shown
        return None


def _upright(image: Image.Image) -> Image.Image:
    """The image as the camera's orientation turns it."""
    image.load()  # which turns a TIFF, and takes the tag away
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _unsigned(image: Image.Image) -> bool:
    """Whether a TIFF's 32-bit integers are unsigned, which Pillow reads as signed ones."""
    tags = getattr(image, "tag_v2", None)
    return image.mode == "I" and tags is not None and tags.get(SAMPLE_FORMAT, (1,)) == (1,)


def _stretched(values: np.ndarray) -> np.ndarray:
    """Grey values ``[h w]`` of any range as RGB uint8, the 0.1st percentile black and the 99.9th white."""
    values = values.astype(np.float64)
    known = values[np.isfinite(values)]
    known = known[:: max(1, known.size // 1_000_000)]
    low, high = np.percentile(known, (0.1, 99.9)) if known.size else (0.0, 0.0)
    if low == high and known.size:  # all but a few are the same
        low, high = known.min(), known.max()
    if low == high:
        grey = np.zeros(values.shape, np.uint8)
    else:
        shares = (np.clip(values, low, high) - low) / (high - low)
        grey = np.nan_to_num(255 * shares).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)))


def _from_array(array: np.ndarray) -> np.ndarray:
    from PIL import Image

    colours = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not colours or array.size == 0:
        raise DeformscopeError(
            f"photo array of shape {array.shape} and type {array.dtype}: expected uint8 [h w 3]; "
            "floats in 0..1 go in as (255 * array).astype('uint8')"
        )
    return _from_image(Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else np.ascontiguousarray(array)))


def _from_tensor(tensor: Tensor) -> np.ndarray:
    values = tensor.detach().cpu()
    if values.ndim != 3 or values.shape[0] not in (1, 3) or values.numel() == 0:
        raise DeformscopeError(f"photo tensor of shape {tuple(values.shape)}: expected [3 h w]")
    if values.is_floating_point():
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise DeformscopeError("photo tensor: expected floats in 0..1 or uint8; undo the normalisation first")
        values = (values * 255).round().byte()
    if values.numpy().dtype != np.uint8:
        raise DeformscopeError(f"photo tensor of type {tensor.dtype}: expected uint8 or floats in 0..1")
    return np.ascontiguousarray(values.expand(3, -1, -1).permute(1, 2, 0).numpy())
