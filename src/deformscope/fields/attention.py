"""The samples of one call of deformable attention, and where they lie (Zhu et al., ICLR 2021, Eq. 2-3).

Every query q looks, with each head h, at p points of the value maps of several levels; weights say how much each point
counts. Points and references are (y, x) in px of the network's input, whatever the module's own convention was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import DeformscopeError
from .field import OffsetField
from .places import CellGrid, Pair, Placement, Point


@dataclass(frozen=True)
class AttentionField:
    """The sampling points of one call of (multi-scale) deformable attention.

    n images, q queries, h heads, p points over all levels. ``weights`` sum to 1 over the points of a head, or are None
    where the module has none.

    Example:
        >>> with torch.no_grad(), ds.capture(model) as fields:          # a Deformable DETR
        ...     output = model(pixel_values=pixels)
        >>> field = fields.attention["model.decoder.layers.0.encoder_attn"]
        >>> field.points.shape, field.centre().shape        # 4 heads, 4 points on each of 4 levels
        (torch.Size([2, 300, 4, 16, 2]), torch.Size([2, 300, 2]))
    """

    points: Float[Tensor, "n q h p 2"]
    """(y, x), network-input px; a point may lie outside the input."""
    weights: Float[Tensor, "n q h p"] | None
    level_reference: Float[Tensor, "n q l r"]
    """What the points were moved from, by level: (y, x) or a box's (y, x, height, width), network-input px."""
    level: Int[Tensor, " p"]
    """The level that each point reads, an index into ``level_sizes``."""
    level_sizes: tuple[Pair, ...]
    """Height and width of each level's map, cells, in the module's own order."""
    input_size: Pair
    """Height and width of the network's input, px, padding included."""
    placements: tuple[Placement, ...] = ()
    """How each of the n photos lies in the network's input; empty: the network's input is the photo."""
    name: str = ""
    image: Tensor | None = None
    """The network's input, uint8 [n H W 3], scaled from its minimum to its maximum; None if it was not recorded."""

    def __post_init__(self) -> None:
        n, q, h, p = self.points.shape[:4]
        if self.points.ndim != 5 or self.points.shape[-1] != 2:
            raise DeformscopeError(f"points of shape {tuple(self.points.shape)}: expected [n q h p 2]")
        if self.weights is not None and tuple(self.weights.shape) != (n, q, h, p):
            raise DeformscopeError(f"weights of shape {tuple(self.weights.shape)}: expected {(n, q, h, p)}")
        levels = len(self.level_sizes)
        if self.level_reference.shape[:3] != (n, q, levels) or self.level_reference.shape[3] not in (2, 4):
            raise DeformscopeError(
                f"level_reference of shape {tuple(self.level_reference.shape)}: expected [{n} {q} {levels} 2 or 4]"
            )
        if tuple(self.level.shape) != (p,):
            raise DeformscopeError(f"level of shape {tuple(self.level.shape)}: expected [{p}], one level per point")

    def __repr__(self) -> str:
        n, q, h, p, _ = self.points.shape
        maps = ", ".join(f"{height}×{width}" for height, width in self.level_sizes)
        kind = "boxes" if self.has_boxes else "points"
        return (
            f"AttentionField({self.name!r}: {n} image{'s'[: n != 1]}, {q} queries from reference {kind}, "
            f"{h} head{'s'[: h != 1]}, {p} points on maps of {maps})"
        )

    @property
    def reference(self) -> Float[Tensor, "n q r"]:
        """What the points were moved from: (y, x) or a box's (y, x, height, width), network-input px.

        The mean over levels, from which each differs by a rounding where the batch is padded.
        """
        return self.level_reference.mean(dim=2)

    @property
    def has_boxes(self) -> bool:
        """Whether the references are boxes (object queries) or points."""
        return self.level_reference.shape[-1] == 4

    def placement(self, image: int = 0) -> Placement:
        """How photo number ``image`` lies in the network's input."""
        return self.placements[image] if self.placements else Placement(self.input_size)

    def to_pixels(self, points: Float[Tensor, "*points 2"], image: int = 0) -> Float[Tensor, "*points 2"]:
        """Points (y, x) in network-input px to (y, x) in px of photo number ``image``."""
        return self.placement(image).to_photo(points)

    def select(self, image: int) -> AttentionField:
        """The field of one image of the batch, n = 1."""
        n = self.points.shape[0]
        if not 0 <= image < n:
            raise DeformscopeError(f"image={image}: expected an index below {n}, the images of {self.name!r}")
        one = slice(image, image + 1)
        return replace(
            self,
            points=self.points[one],
            weights=None if self.weights is None else self.weights[one],
            level_reference=self.level_reference[one],
            image=None if self.image is None else self.image[one],
            placements=self.placements[one],
        )

    def to(self, device: torch.device | str) -> AttentionField:
        """The field with its tensors on another device."""
        return replace(
            self,
            points=self.points.to(device),
            weights=None if self.weights is None else self.weights.to(device),
            level_reference=self.level_reference.to(device),
            level=self.level.to(device),
        )

    def displacement(self) -> Float[Tensor, "n q h p 2"]:
        """How far each point lies from its own level's reference, (y, x), network-input px."""
        return self.points - self.level_reference[:, :, self.level, :2][:, :, None]

    def split(self, *, weighted: bool = True) -> tuple[Float[Tensor, "n q h 1 2"], Float[Tensor, "n q h p 2"]]:
        """The two viewpoints of each head: d_f, the mean displacement of its points, and d_k, the rest (Eq. 2 and 3 of
        Zhang et al., ICPRAM 2021). ``weighted`` counts every point by its weight."""
        moved = self.displacement()
        if self.weights is None or not weighted:
            d_f = moved.mean(dim=3, keepdim=True)
        else:
            shares = self.weights / self.weights.sum(dim=3, keepdim=True).clamp(min=1e-12)
            d_f = (moved * shares[..., None]).sum(dim=3, keepdim=True)
        return d_f, moved - d_f

    def centre(self) -> Float[Tensor, "n q 2"]:
        """Where each query looks on the whole: the weighted mean of its points over heads, network-input px (y, x)."""
        if self.weights is None:
            return self.points.mean(dim=(2, 3))
        shares = self.weights / self.weights.sum(dim=(2, 3), keepdim=True).clamp(min=1e-12)
        return (self.points * shares[..., None]).sum(dim=(2, 3))

    def spread(self) -> Float[Tensor, "n q 2"]:
        """How wide each query looks: the weighted standard deviation of its points, network-input px (y, x)."""
        away = (self.points - self.centre()[:, :, None, None]).square()
        if self.weights is None:
            return away.mean(dim=(2, 3)).sqrt()
        shares = self.weights / self.weights.sum(dim=(2, 3), keepdim=True).clamp(min=1e-12)
        return (away * shares[..., None]).sum(dim=(2, 3)).sqrt()

    def level_mass(self) -> Float[Tensor, "n q h l"]:
        """The share of each head's weight that lies on each level's map; of its points, where there are no weights."""
        weights = self.points.new_ones(self.points.shape[:4]) if self.weights is None else self.weights
        on = self.level[:, None] == torch.arange(len(self.level_sizes), device=self.level.device)  # [p l]
        return weights @ on.to(weights) / weights.sum(dim=3, keepdim=True).clamp(min=1e-12)

    def nearest(self, boxes: Float[Tensor, "d 4"], image: int = 0) -> Int[Tensor, " d"]:
        """The query whose reference lies nearest to each box (xyxy, px of photo number ``image``): of reference boxes
        the one whose sides do, of points the nearest to its centre."""
        centre = self.to_pixels(self.reference[image, :, :2], image)
        wanted = torch.stack([boxes[:, 1::2].mean(dim=1), boxes[:, ::2].mean(dim=1)], dim=1).to(centre)
        if self.has_boxes:
            size = self.reference[image, :, 2:] / centre.new_tensor(self.placement(image).scale)
            centre = torch.cat([centre, size], dim=1)
            wide = torch.stack([boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], dim=1)
            wanted = torch.cat([wanted, wide.to(centre)], dim=1)
        return (wanted[:, None] - centre).abs().sum(dim=2).argmin(dim=1)

    @property
    def is_dense(self) -> bool:
        """Whether the queries are the cells of all levels (an encoder's)."""
        return self.points.shape[1] == sum(height * width for height, width in self.level_sizes)

    def cells_of(self, query_level: int) -> tuple[Pair, slice]:
        """Height and width of one level of an encoder's queries, and their places among all.

        Raises DeformscopeError for object queries, and for a level that is not there.
        """
        if not self.is_dense:
            cells = sum(height * width for height, width in self.level_sizes)
            raise DeformscopeError(
                f"{self.name}: {self.points.shape[1]} queries are not the {cells} cells of its maps; "
                "object queries lie on no grid: use points, weights and reference, or draw.queries"
            )
        _check_level("query_level", query_level, len(self.level_sizes))
        sizes = [height * width for height, width in self.level_sizes]
        start = sum(sizes[:query_level])
        return self.level_sizes[query_level], slice(start, start + sizes[query_level])

    def dense(self, query_level: int, value_level: int) -> OffsetField:
        """An encoder's points as the offset field of one level's queries on one level's map.

        One group per head, one kernel point per sampling point of the head on that map, without a regular grid; cells
        are those of the query level and offsets are displacements from the reference that the module was given, in
        these cells. The modulation is the attention's weight, which sums to 1 over levels and points together.

        Raises DeformscopeError for object queries, which lie on no grid, and for levels that are not there.
        """
        (h, w), queries = self.cells_of(query_level)
        _check_level("value_level", value_level, len(self.level_sizes))
        chosen = (self.level == value_level).nonzero()[:, 0]
        reduction: Point = (self.input_size[0] / h, self.input_size[1] / w)
        moved = self.displacement()[:, queries][:, :, :, chosen] / self.points.new_tensor(reduction)
        n, _, heads, points, _ = moved.shape
        weights = None if self.weights is None else self.weights[:, queries][..., chosen]
        return OffsetField(
            offset=moved.reshape(n, h, w, heads, points, 2).permute(0, 3, 4, 1, 2, 5).contiguous(),
            modulation=None
            if weights is None
            else weights.reshape(n, h, w, heads, points).permute(0, 3, 4, 1, 2).contiguous(),
            kernel_size=(1, points),
            padding=(0, 0),
            dilation=(0, 0),
            input_size=(h, w),
            cells=CellGrid(reduction, (reduction[0] / 2, reduction[1] / 2)),
            network_size=self.input_size,
            image=self.image,
            placements=self.placements,
            name=f"{self.name}[{query_level} on {value_level}]",
        )


def _check_level(argument: str, value: int, levels: int) -> None:
    if not 0 <= value < levels:
        raise DeformscopeError(f"{argument}={value}: expected 0 to {levels - 1}")


def levels_of(points: Sequence[int], device: torch.device | str = "cpu") -> Int[Tensor, " p"]:
    """The level of each point, where level l has ``points[l]`` of them."""
    return torch.repeat_interleave(torch.arange(len(points)), torch.tensor(list(points))).to(device)
