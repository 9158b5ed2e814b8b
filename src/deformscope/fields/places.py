"""Places: how photos lie in a network's input, and the cells of feature maps in it.

Coordinates are continuous: pixel j covers [j, j + 1) and its centre is j + 0.5, as for boxes. The place of a cell is
the centre of its receptive field; points are (y, x).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..errors import DeformscopeError

Pair = tuple[int, int]
Point = tuple[float, float]
FITS = "stretch", "crop", "crop:N", "pad", "pad:N", "pad-centre", "pad-centre:N"
"""How a photo is made into an input of another size; N is the shorter side before a crop, the longer before padding."""


@dataclass(frozen=True)
class Placement:
    """How a photo lies in the network's input: network px = photo px · scale + shift, each (y, x).

    Example:
        >>> placement = ds.Placement(size=(300, 450), scale=(2.0, 2.0))     # a photo that was doubled
        >>> placement.to_photo(torch.tensor([100.0, 40.0]))
        tensor([50., 20.])
    """

    size: Pair
    """Height and width of the photo, px."""
    scale: Point = (1.0, 1.0)
    shift: Point = (0.0, 0.0)

    @classmethod
    def fitted(cls, photo: Pair, network: Pair, fit: str | None = None) -> Placement:
        """How a photo of one (height, width) was made into a network's input of another.

        ``fit``: ``"stretch"`` (resized to the input), ``"crop"`` (resized until it covers the input, the centre cut
        out), ``"crop:256"`` (the shorter side resized to 256 px, the centre cut out), ``"pad"`` (resized until it fits
        into the input, padded at the right and the bottom), ``"pad:640"`` (the longer side resized to 640 px, padded
        there) or ``"pad-centre"`` (padded on all sides). Without it the photo must have the size of the input, or its
        aspect ratio to within one px. Sizes and margins are rounded as torchvision's ``Resize`` and ``CenterCrop``
        round them, and for padding as letterboxes do.

        Raises DeformscopeError where the sizes differ and ``fit`` does not say why.

        Example:
            >>> ds.Placement.fitted((576, 768), (224, 224), "crop")
            Placement(size=(576, 768), scale=(0.3888888888888889, 0.3880208333333333), shift=(0.0, -37.0))
        """
        ratios = network[0] / photo[0], network[1] / photo[1]
        if fit is None and not _same_aspect(photo, network):
            raise DeformscopeError(
                f"photo of {sides(photo)} px (height × width): the network's input has {sides(network)}, another "
                'aspect ratio; say how the input was made: fit="stretch" (resized to it), fit="crop" (shorter side '
                'resized, centre cut out; "crop:256" if to another size than the input\'s), fit="pad" (longer side '
                'resized, padded at the right and the bottom) or fit="pad-centre"'
            )
        if fit in (None, "stretch"):
            return cls(photo, ratios)
        kind = re.fullmatch(r"(crop|pad|pad-centre)(?::([1-9]\d{0,4}))?", str(fit))
        if kind is None:
            raise DeformscopeError(f"fit={fit!r}: expected one of {', '.join(map(repr, FITS))}")
        crop, given = kind[1] == "crop", int(kind[2] or 0)
        # One side's length before and after; the other follows, truncated by Resize and rounded by letterboxes.
        side = ratios.index(max(ratios) if crop else min(ratios))
        before, after = (min(photo) if crop else max(photo), given) if given else (photo[side], network[side])
        resized = [length * after // before if crop else max(1, round(length * after / before)) for length in photo]
        spare = [n - r for n, r in zip(network, resized, strict=True)]
        if (max(spare) > 0 or min(resized) < 1) if crop else min(spare) < 0:
            raise DeformscopeError(
                f"fit={fit!r}: a photo of {sides(photo)} px becomes {sides(resized)}, {'from' if crop else 'to'} "
                f"which the network's input of {sides(network)} cannot be {'cut' if crop else 'padded'}"
            )
        shift = [0.0, 0.0] if kind[1] == "pad" else [float(round(one / 2 - (0 if crop else 0.1))) for one in spare]
        return cls(photo, (resized[0] / photo[0], resized[1] / photo[1]), (shift[0], shift[1]))

    def to_photo(self, points: Float[Tensor, "*points 2"]) -> Float[Tensor, "*points 2"]:
        """Network px (y, x) to photo px (y, x)."""
        return (points - points.new_tensor(self.shift)) / points.new_tensor(self.scale)

    def to_network(self, points: Float[Tensor, "*points 2"]) -> Float[Tensor, "*points 2"]:
        """Photo px (y, x) to network px (y, x)."""
        return points * points.new_tensor(self.scale) + points.new_tensor(self.shift)

    def boxes_to_photo(self, boxes: Float[Tensor, "d 4"]) -> Float[Tensor, "d 4"]:
        """Boxes xyxy in network px to photo px."""
        return self.to_photo(boxes.view(-1, 2, 2).flip(-1)).flip(-1).reshape(-1, 4)

    @property
    def network_size(self) -> Pair:
        """Height and width of the resized, unpadded photo in the network's input, px."""
        height, width = (round(size * scale) for size, scale in zip(self.size, self.scale, strict=True))
        return height, width

    def padded_size(self, divisor: int = 32) -> Pair:
        """Height and width, network px, of the photo if it were padded alone to multiples of ``divisor``."""
        height, width = self.network_size
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor


@dataclass(frozen=True)
class CellGrid:
    """The places of a feature map's cells: centre of cell (y, x) = origin + reduction · (y, x), in network px.

    Example:
        >>> cells = ds.CellGrid(reduction=(16.0, 16.0), origin=(0.5, 0.5))
        >>> cells.to_network(torch.tensor([2.0, 3.0]))
        tensor([32.5000, 48.5000])
    """

    reduction: Point = (1.0, 1.0)
    origin: Point = (0.5, 0.5)

    def strided(self, kernel: Pair, stride: Point, padding: Point, dilation: Pair) -> CellGrid:
        """The grid after a convolution or pooling with this geometry (centres of its receptive fields)."""
        origin, reduction = [], []
        for axis in (0, 1):
            centre = -padding[axis] + dilation[axis] * (kernel[axis] - 1) / 2
            origin.append(self.origin[axis] + self.reduction[axis] * centre)
            reduction.append(self.reduction[axis] * stride[axis])
        return CellGrid((reduction[0], reduction[1]), (origin[0], origin[1]))

    def resized(self, before: Pair, after: Pair) -> CellGrid:
        """The grid after resizing the map from one (h, w) to another, with fixed cell edges (align_corners=False)."""
        origin, reduction = [], []
        for axis in (0, 1):
            step = before[axis] / after[axis]
            origin.append(self.origin[axis] + self.reduction[axis] * (step / 2 - 0.5))
            reduction.append(self.reduction[axis] * step)
        return CellGrid((reduction[0], reduction[1]), (origin[0], origin[1]))

    def to_network(self, points: Float[Tensor, "*points 2"]) -> Float[Tensor, "*points 2"]:
        """Cells (y, x) to network px (y, x)."""
        return points * points.new_tensor(self.reduction) + points.new_tensor(self.origin)

    def to_cells(self, points: Float[Tensor, "*points 2"]) -> Float[Tensor, "*points 2"]:
        """Network px (y, x) to cells (y, x)."""
        return (points - points.new_tensor(self.origin)) / points.new_tensor(self.reduction)


def _same_aspect(photo: Pair, network: Pair) -> bool:
    """Whether one factor takes both sides of the photo to within one px of the network's."""
    least = max((n - 1) / p for n, p in zip(network, photo, strict=True))
    most = min((n + 1) / p for n, p in zip(network, photo, strict=True))
    return least <= most


def sides(size: Sequence[int]) -> str:
    """Height and width in words."""
    return f"{size[0]}×{size[1]}"
