"""The photo to draw fields on, and its placement in the network's input, for figures and pages."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from .errors import DeformscopeError, DeformscopeWarning
from .fields.attention import AttentionField
from .fields.field import OffsetField
from .fields.fields import Fields
from .fields.places import Pair, Placement, sides
from .photo import Photo, as_rgb

AnyField = TypeVar("AnyField", bound=OffsetField | AttentionField)
STRIP_ROWS = 512
MOST_PER_INCH = 110
"""Photo px per inch of a panel; up to twice as many are kept."""
LEAST_CORRELATION = 0.5
"""Least correlation of the grey values of a photo and the network's input computed from it."""
COMPARED = 32
"""Tiles along each side in which they are compared; photos are first thinned to 16 px per tile."""


@dataclass(frozen=True)
class Backdrop:
    """A photo for figures, perhaps reduced, with its own size; everything is drawn in px of the latter."""

    pixels: np.ndarray
    """RGB uint8."""
    size: tuple[int, int]
    """Height and width of the photo, px."""

    @classmethod
    def of(cls, photo: Photo | Backdrop) -> Backdrop:
        """A photo with all its px; RGB uint8 ``[h w 3]`` is not copied."""
        if isinstance(photo, Backdrop):
            return photo
        array = as_rgb(photo)
        return cls(array, (array.shape[0], array.shape[1]))

    def within(self, inches: float) -> Backdrop:
        """The photo with as many px as a panel of this width can show, since the time for drawing depends on them."""
        factor = int(self.pixels.shape[1] // (inches * MOST_PER_INCH))
        return self if factor < 2 else Backdrop(reduced(self.pixels, factor), self.size)

    def whole(self) -> np.ndarray:
        """The photo at its own size, RGB uint8; enlarged where fewer px are known."""
        from PIL import Image

        if self.pixels.shape[:2] == self.size:
            return self.pixels
        return np.asarray(Image.fromarray(self.pixels).resize(self.size[::-1], Image.Resampling.BILINEAR))


def reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
    """RGB uint8 with the mean of each ``factor`` × ``factor`` px; by strips, so that no second photo is in memory."""
    from PIL import Image

    rows = factor * max(1, STRIP_ROWS // factor)
    strips = (Image.fromarray(pixels[top : top + rows]) for top in range(0, len(pixels), rows))
    return np.concatenate([np.asarray(strip.reduce(factor)) for strip in strips])


def washed(pixels: np.ndarray, wash: float) -> np.ndarray:
    """RGB uint8 blended with white by ``wash`` (0..1)."""
    if not wash:
        return pixels
    shades = (np.arange(256) * (1 - wash) + 255 * wash).astype(np.uint8)
    return shades[pixels]


def on_photo(
    fields: Sequence[AnyField], photo: Photo | Backdrop | None = None, fit: str | None = None
) -> tuple[Backdrop, list[AnyField]]:
    """The photo to draw ``fields`` on, and the fields with its placement, so that ``to_pixels`` gives px of the photo.

    Without ``photo`` it is the network's input as recorded, or blank for fields that were created without one. Where
    the placement of a field is not known, it follows from the photo's size and ``fit`` (:meth:`Placement.fitted`).

    Raises DeformscopeError for a photo that cannot be that of the fields, and if the places of cells are not known;
    warns if photo and recorded input hardly resemble each other.
    """
    for field in fields:
        if isinstance(field, OffsetField):
            field.input_cells  # noqa: B018  (raises where they are not known)
    if photo is None:
        if not fields:
            raise DeformscopeError("fields: none given; expected at least one, or the photo")
        if fit is not None:
            raise DeformscopeError(f"fit={fit!r}: says how a photo became the network's input; give the photo too")
        backdrop = _recorded(fields)
    else:
        backdrop = Backdrop.of(photo)
    placed = [replace(field, placements=(_placement(field, backdrop.size, fit),) * _images(field)) for field in fields]
    recorded = next((field for field in placed if field.image is not None and _images(field) == 1), None)
    if photo is not None and recorded is not None and recorded.image is not None:
        found = _correlation(backdrop, recorded.image[0], recorded.placement())
        if found < LEAST_CORRELATION:
            warnings.warn(
                f"photo: it hardly resembles the input of {recorded.name!r} (correlation of grey values "
                f"{found:.2f}); is it another photo, or does fit={fit!r} not describe how the input was computed?",
                DeformscopeWarning,
                stacklevel=5,
            )
    return backdrop, placed


def fields_on_photo(fields: Fields, photo: Photo | None, fit: str | None = None) -> tuple[Backdrop, Fields]:
    """:func:`on_photo` for all that was captured."""
    several: list[OffsetField | AttentionField] = [*fields.values(), *fields.attention.values()]
    backdrop, placed = on_photo(several, photo, fit)
    pairs = list(zip([*fields, *fields.attention], placed, strict=True))
    return backdrop, Fields(
        {name: one for name, one in pairs if isinstance(one, OffsetField)},
        {name: one for name, one in pairs if isinstance(one, AttentionField)},
    )


def _images(field: OffsetField | AttentionField) -> int:
    return (field.offset if isinstance(field, OffsetField) else field.points).shape[0]


def _network_size(field: OffsetField | AttentionField) -> Pair | None:
    return field.network_size if isinstance(field, OffsetField) else field.input_size


def _placement(field: OffsetField | AttentionField, size: Pair, fit: str | None) -> Placement:
    """Placement of a photo of this size in the field's network input."""
    network = _network_size(field)
    if field.placements:
        known = field.placements[0]
        if known.size != size:
            raise DeformscopeError(
                f"photo of {sides(size)} px (height × width): {field.name!r} was computed from one of "
                f"{sides(known.size)}; give that one, or photo=None to draw on the network's input as recorded"
            )
        if fit is not None:
            raise DeformscopeError(
                f"fit={fit!r}: the placement in the network's input is known for {field.name!r}; leave fit out"
            )
        return known
    if network is not None:
        return Placement.fitted(size, network, fit)
    extent = field.placement().size
    if fit is not None:
        return Placement.fitted(size, extent, fit)
    assert isinstance(field, OffsetField)
    apart = (abs(one - other) for one, other in zip(size, extent, strict=True))
    if any(px > cell for px, cell in zip(apart, field.input_cells.reduction, strict=True)):
        raise DeformscopeError(
            f"photo of {sides(size)} px (height × width): the map of {field.name!r} covers {sides(extent)} px by its "
            "reduction; give the photo at the size of the network's input, or say how it became the input: "
            'fit="stretch", "crop" or "pad"'
        )
    return Placement(size)


def _recorded(fields: Sequence[OffsetField | AttentionField]) -> Backdrop:
    """The network's input: of a photo whose placement is known the photo's part, white where the photo was cut off."""
    first = next((field for field in fields if field.image is not None), fields[0])
    placement = first.placement()
    if first.image is None:
        if _network_size(first) is not None:
            raise DeformscopeError(
                f"photo=None: the network's input was not recorded with {first.name!r}; give the photo"
            )
        size = np.max([field.placement().size for field in fields], axis=0).tolist()
        return Backdrop(np.full((*size, 3), 255, np.uint8), (size[0], size[1]))
    image = first.image[0].cpu().numpy()
    part = [max(1, round(size * scale)) for size, scale in zip(placement.size, placement.scale, strict=True)]
    rows, columns = (np.arange(n) + round(shift) for n, shift in zip(part, placement.shift, strict=True))
    on = [(index >= 0) & (index < n) for index, n in zip((rows, columns), image.shape, strict=False)]
    pixels = np.full((*part, 3), 255, np.uint8)
    pixels[np.ix_(*on)] = image[np.ix_(rows[on[0]], columns[on[1]])]
    return Backdrop(pixels, placement.size)


def _correlation(backdrop: Backdrop, image: Tensor, placement: Placement) -> float:
    """Of the grey values of the photo and of the network's input, in the part that both show."""
    size, network = np.array(backdrop.size, float), np.array(image.shape[:2], float)
    scale, shift = np.array(placement.scale), np.array(placement.shift)
    low, high = np.maximum(0, -shift / scale), np.minimum(size, (network - shift) / scale)
    if (high - low < 1).any():
        return 1.0
    ratio = np.array(backdrop.pixels.shape[:2]) / size
    one = _grey(backdrop.pixels, low * ratio, high * ratio)
    other = _grey(image.cpu().numpy(), low * scale + shift, np.minimum(network, high * scale + shift))
    deviations = one.std(), other.std()
    if min(deviations) < 1e-3:  # nothing to compare
        return 1.0
    return float(((one - one.mean()) * (other - other.mean())).mean() / np.prod(deviations))


def _grey(pixels: np.ndarray, low: np.ndarray, high: np.ndarray) -> Float[np.ndarray, "y x"]:
    """The means of a photo's grey values in tiles between two corners (y, x) px."""
    from PIL import Image

    step = max(1, max(pixels.shape) // (16 * COMPARED))
    grey = Image.fromarray(pixels[::step, ::step].mean(axis=2, dtype=np.float32))
    top, left = np.minimum(low / step, (grey.height - 1, grey.width - 1))
    bottom, right = np.minimum(high / step, (grey.height, grey.width))
    box = (float(left), float(top), float(max(right, left + 1e-3)), float(max(bottom, top + 1e-3)))
    return np.asarray(grey.resize((COMPARED, COMPARED), Image.Resampling.BOX, box=box), dtype=float)
