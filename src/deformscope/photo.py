"""Photos of any kind as one thing: upright RGB uint8 arrays ``[h w 3]``."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np

from .errors import DeformscopeError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Photo = Union[str, "os.PathLike[str]", "Image.Image", np.ndarray, "Tensor"]

MOST_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: a small file can unpack to many gigabytes."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read(photo: Photo) -> np.ndarray:
    """A photo as an upright RGB uint8 array ``[h w 3]``.

    Takes a path, a PIL image, a uint8 ``[h w 3]`` (or grey ``[h w]``, or RGBA) array, or a ``[3 h w]`` tensor, uint8
    or floats in 0..1. EXIF orientation is applied; grey, palette, transparent (on white), 16-bit and CMYK images are
    converted. Raises DeformscopeError, naming the file, when it cannot be read.
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


def find(paths: list[Path]) -> list[Path]:
    """The photos that ``paths`` name: files as they are, folders as the photos inside them (sorted, recursively)."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise DeformscopeError(
                    f"{path}: no photo in this folder; expected files ending in {', '.join(SUFFIXES)}"
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _from_image(image)
    except DeformscopeError as error:
        raise DeformscopeError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise DeformscopeError(f"{path}: not an image that can be read; expected a JPEG, PNG, WebP, TIFF…") from None
    except Image.DecompressionBombError:
        raise DeformscopeError(f"{path}: larger than {MOST_PIXELS / 1e6:.0f} megapixels; shrink it first") from None
    except PermissionError:
        raise DeformscopeError(f"{path}: may not be read; check the file's permissions") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DeformscopeError(f"{path}: damaged or cut off ({error}); get the file again") from None


def _from_image(image: Image.Image) -> np.ndarray:
    from PIL import Image, ImageOps

    if image.width * image.height > MOST_PIXELS:
        raise DeformscopeError(
            f"{image.width}×{image.height} px: expected at most {MOST_PIXELS / 1e6:.0f} megapixels; shrink it first"
        )
    image = ImageOps.exif_transpose(image) or image
    if image.mode in ("I", "F", "I;16", "I;16B", "I;16L"):
        # Pillow's own conversion clips 16 bits at 255 instead of scaling them.
        values = np.asarray(image).astype(np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        grey = np.clip(values / top * 255, 0, 255).round().astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(ground, layer)
    return np.array(image.convert("RGB"))


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
