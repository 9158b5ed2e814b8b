"""Offset fields of deformable convolutions, and the places of their cells in the photo.

All other code sees offsets as ``[n g k h w 2]``, with the last axis (dy, dx), in cells of the operator's *input*
feature map (Zhang et al., ICPRAM 2021, Eq. 1). Channel orders, strides and paddings are handled here, once.

Coordinates are continuous: pixel j covers [j, j + 1) and its centre is j + 0.5, as for boxes. The place of a cell is
the centre of its receptive field; points are (y, x).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import DeformscopeError
from .places import CellGrid, Pair, Placement, Point

ORDERS = ("yx", "xy")


def _pair(value: int | Sequence[int], name: str, least: int) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int) or v < least for v in pair):
        raise DeformscopeError(f"{name}={value!r}: expected one int or a (y, x) pair of ints, each at least {least}")
    return pair[0], pair[1]


@dataclass(frozen=True)
class OffsetSource:
    """The origin of the offsets of one call of a deformable convolution.

    Example:
        >>> field.source.convolutions
        ('heads.stride16.deform.conv_offset',)
    """

    convolutions: tuple[str, ...] = ()
    """Names of the ``nn.Conv2d`` modules that made them; empty if something else did."""
    misalignment: Point | None = None
    """Displacement (y, x) of the offset map's cells from the cells that they move, in cells of the operator's input;
    None if the places of either are not known."""
    replaced: float = 0.0
    """Share of the offsets that the model itself replaced because they were NaN or infinite (``nan_to_num``)."""


@dataclass(frozen=True)
class OffsetField:
    """The offsets of one call of a deformable convolution, with what is needed to place them on the photo.

    ``offset`` is ``[n g k h w 2]``, (dy, dx) in cells of the input feature map; ``modulation`` ``[n g k h w]`` or None
    (DCNv1). n images, g offset groups, k kernel points (row-major over ``kernel_size``), h × w output cells.

    Example:
        >>> field
        OffsetField('heads.stride16.deform': 1 image, 1 group, kernel 3×3, 16×26 cells, stride 16 network px)
        >>> field.offset.shape, field.sampling_points().shape
        (torch.Size([1, 1, 9, 16, 26, 2]), torch.Size([1, 1, 9, 16, 26, 2]))
        >>> field.cell_at((150, 220))       # the cell nearest to a place (y, x) of the photo
        (8, 12)
    """

    offset: Float[Tensor, "n g k h w 2"]
    modulation: Float[Tensor, "n g k h w"] | None = None
    kernel_size: Pair = (3, 3)
    stride: Point = (1, 1)
    """Input cells from one kernel to the next; real numbers where a module lays them out so (DAT)."""
    padding: Point = (1, 1)
    dilation: Pair = (1, 1)
    input_size: Pair = (0, 0)
    """Height and width of the operator's input map, cells."""
    cells: CellGrid | None = None
    """The places of the operator's *input* cells in the network's input; None if they are not known."""
    placements: tuple[Placement, ...] = ()
    """How each of the n photos lies in the network's input; if empty, the network's input is the photo."""
    name: str = ""
    below: str | None = None
    """Name of the deformable call through which this one's input came last; empty for none; None if unknown."""
    source: OffsetSource | None = None
    """The origin of the offsets; None if unknown (the field was not captured)."""
    absent: tuple[int, ...] = ()
    """Kernel points at which nothing is sampled (the centre, of a DCNv3 with ``remove_center``). They are kept at the
    mean of the others, with modulation 0, so that d_f and d_k are those of the others."""
    unplaced: str = ""
    """Why they are not known: the operator after which the places of cells could not be followed, and its module."""
    network_size: Pair | None = None
    """Height and width of the network's input, px; None for a field that was not captured."""
    image: Tensor | None = None
    """The network's input, uint8 [n H W 3], scaled from its minimum to its maximum; None if it was not recorded."""

    @classmethod
    def from_tensor(
        cls,
        offset: Tensor,
        *,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | None = None,
        dilation: int | Sequence[int] = 1,
        offset_groups: int = 1,
        order: str = "yx",
        modulation: Tensor | None = None,
        input_size: Sequence[int] | None = None,
        reduction: float | Sequence[float] | None = None,
        origin: Sequence[float] | None = None,
        placements: Sequence[Placement] = (),
        name: str = "",
        below: str | None = None,
    ) -> OffsetField:
        """Create an OffsetField from a raw offset tensor ``[n 2·g·k h w]`` (or ``[2·g·k h w]``) of any source.

        Channels are by group, then by kernel point (row-major), then by component: ``order="yx"`` as in torchvision,
        mmcv and Detectron2, or ``"xy"``. ``modulation`` is ``[n g·k h w]``, after its sigmoid. ``padding`` defaults to
        the one that keeps the size of the map at stride 1. ``reduction`` is image px per *input* cell; ``origin`` is
        the centre of input cell (0, 0), (y, x) px (default: 0.5 px, as after convolutions padded to keep their size).
        Without ``reduction`` the places of the cells are unknown, and nothing can be drawn on a photo.
        ``input_size`` defaults to the smallest that gives h × w outputs. ``below`` is the name of the field through
        whose layer this one's input came last.

        Raises DeformscopeError when shapes do not fit. Half precision is widened to float32.

        Example:
            >>> raw = torch.randn(1, 18, 20, 30)                            # from any deformable convolution
            >>> ds.OffsetField.from_tensor(raw, kernel_size=3, reduction=16, name="layer4")
            OffsetField('layer4': 1 image, 1 group, kernel 3×3, 20×30 cells, stride 16 network px)
        """
        kernel = _pair(kernel_size, "kernel_size", 1)
        step, spread = _pair(stride, "stride", 1), _pair(dilation, "dilation", 1)
        pad = (
            (spread[0] * (kernel[0] - 1) // 2, spread[1] * (kernel[1] - 1) // 2)
            if padding is None
            else _pair(padding, "padding", 0)
        )
        if order not in ORDERS:
            raise DeformscopeError(f"order={order!r}: expected one of {', '.join(map(repr, ORDERS))}")
        if offset.ndim == 3:
            offset = offset[None]
        if modulation is not None and modulation.ndim == 3:
            modulation = modulation[None]
        points = kernel[0] * kernel[1]
        channels = 2 * offset_groups * points
        if offset.ndim != 4 or offset.shape[1] != channels:
            raise DeformscopeError(
                f"offset of shape {tuple(offset.shape)}: expected [n {channels} h w] "
                f"(2 · {offset_groups} offset groups · {kernel[0]}×{kernel[1]} kernel points); "
                "give the right kernel_size and offset_groups, and split off a modulation"
            )
        n, _, h, w = offset.shape
        if modulation is not None and tuple(modulation.shape) != (n, channels // 2, h, w):
            raise DeformscopeError(
                f"modulation of shape {tuple(modulation.shape)}: expected {(n, channels // 2, h, w)}"
            )
        vectors = _widened(offset).reshape(n, offset_groups, points, 2, h, w).movedim(3, -1)
        if order == "xy":
            vectors = vectors.flip(-1)
        least = [
            max(1, (size - 1) * step[i] - 2 * pad[i] + spread[i] * (kernel[i] - 1) + 1) for i, size in enumerate((h, w))
        ]
        cells = None
        if reduction is not None:
            ratio = (float(reduction), float(reduction)) if isinstance(reduction, (int, float)) else tuple(reduction)
            cells = CellGrid((ratio[0], ratio[1]), (0.5, 0.5) if origin is None else (origin[0], origin[1]))
        return cls(
            offset=vectors,
            modulation=None if modulation is None else _widened(modulation).reshape(n, offset_groups, points, h, w),
            kernel_size=kernel,
            stride=step,
            padding=pad,
            dilation=spread,
            input_size=_pair(least if input_size is None else input_size, "input_size", 1),
            cells=cells,
            unplaced="" if cells else "from_tensor was given no reduction",
            placements=tuple(placements),
            name=name,
            below=below,
        )

    def __post_init__(self) -> None:
        n, points = self.offset.shape[0], self.kernel_size[0] * self.kernel_size[1]
        if self.offset.ndim != 6 or self.offset.shape[-1] != 2 or self.offset.shape[2] != points:
            raise DeformscopeError(f"offset of shape {tuple(self.offset.shape)}: expected [n g {points} h w 2]")
        if self.placements and len(self.placements) != n:
            raise DeformscopeError(f"placements: {len(self.placements)} given for {n} images; expected one an image")

    def __repr__(self) -> str:
        n, g, _, h, w, _ = self.offset.shape
        stride = "places unknown" if self.cells is None else f"stride {stride_text(self)} network px"
        return (
            f"OffsetField({self.name!r}: {n} image{'s'[: n != 1]}, {g} group{'s'[: g != 1]}, "
            f"kernel {kernel_text(self)}, {h}×{w} cells, {stride}"
            f"{', modulated' if self.modulation is not None else ''})"
        )

    @property
    def input_cells(self) -> CellGrid:
        """The places of the input cells. Raises DeformscopeError where they are not known."""
        if self.cells is None:
            raise DeformscopeError(
                f"the places of the cells of {self.name!r} are not known ({self.unplaced or 'no cells were given'}); "
                "give them: field.at(ds.CellGrid(reduction, origin)), or take the map's own cells for px: "
                "field.at(ds.CellGrid())"
            )
        return self.cells

    @property
    def reduction(self) -> Point:
        """Network px per *output* cell, (y, x)."""
        cells = self.input_cells
        return cells.reduction[0] * self.stride[0], cells.reduction[1] * self.stride[1]

    @property
    def output_cells(self) -> CellGrid:
        """The places of the output cells: the centres of their kernels' regular grids."""
        return self.input_cells.strided(self.kernel_size, self.stride, self.padding, self.dilation)

    def at(self, cells: CellGrid) -> OffsetField:
        """The field with its input cells at these places, which are then known.

        ``CellGrid()`` stands for the map's own cells: unless the network's input has just these px, the field is then
        one of the map alone, and is drawn with a cell for each px.

        Example:
            >>> field.at(ds.CellGrid(reduction=(16.0, 16.0), origin=(8.0, 8.0))).output_cells.origin
            (8.0, 8.0)
        """
        placed = replace(self, cells=cells, unplaced="")
        if cells != CellGrid() or self.network_size in (None, self.input_size):
            return placed
        return replace(placed, network_size=None, image=None, placements=())

    def placement(self, image: int = 0) -> Placement:
        """How photo number ``image`` lies in the network's input."""
        if self.placements:
            return self.placements[image]
        if self.network_size is not None:
            return Placement(self.network_size)
        ratios = self.input_cells.reduction
        extent = [math.ceil(size * ratio) for size, ratio in zip(self.input_size, ratios, strict=True)]
        return Placement((extent[0], extent[1]))

    def select(self, image: int) -> OffsetField:
        """The field of one image of the batch, n = 1."""
        n = self.offset.shape[0]
        if not 0 <= image < n:
            raise DeformscopeError(f"image={image}: expected an index below {n}, the images of {self.name!r}")
        return replace(
            self,
            offset=self.offset[image : image + 1],
            modulation=None if self.modulation is None else self.modulation[image : image + 1],
            image=None if self.image is None else self.image[image : image + 1],
            placements=self.placements[image : image + 1],
        )

    def to(self, device: torch.device | str) -> OffsetField:
        """The field with its tensors on another device."""
        return replace(
            self,
            offset=self.offset.to(device),
            modulation=None if self.modulation is None else self.modulation.to(device),
        )

    @property
    def non_finite(self) -> float:
        """Share of the offsets that are NaN or infinite, or were before the model replaced them."""
        share = 1.0 - torch.isfinite(self.offset).float().mean().item() if self.offset.numel() else 0.0
        return max(share, 0.0 if self.source is None else self.source.replaced)

    def regular_points(self) -> Float[Tensor, "k h w 2"]:
        """p0·stride − padding + p_k·dilation: the places of the kernel points without offsets, (y, x) in input
        cells."""
        *_, h, w, _ = self.offset.shape
        axes = []
        for axis, size in enumerate((h, w)):
            p0 = torch.arange(size, device=self.offset.device, dtype=self.offset.dtype) * self.stride[axis]
            p_k = torch.arange(self.kernel_size[axis], device=p0.device, dtype=p0.dtype) * self.dilation[axis]
            axes.append(p0[None] - self.padding[axis] + p_k[:, None])
        y = axes[0][:, None, :, None].expand(-1, self.kernel_size[1], -1, w)
        x = axes[1][None, :, None, :].expand(self.kernel_size[0], -1, h, -1)
        return torch.stack([y, x], dim=-1).flatten(0, 1)

    def sampling_points(self) -> Float[Tensor, "n g k h w 2"]:
        """p0·stride − padding + p_k·dilation + Δp_k (Eq. 1): the sampling points, (y, x) in input cells."""
        return self.regular_points() + self.offset

    def centres(self) -> Float[Tensor, "h w 2"]:
        """The centre of every output cell's regular kernel, (y, x) in input cells."""
        return self.regular_points().mean(dim=0)

    def to_pixels(self, points: Float[Tensor, "*points 2"], image: int = 0) -> Float[Tensor, "*points 2"]:
        """Convert points (y, x) in input cells to (y, x) in px of photo number ``image``."""
        return self.placement(image).to_photo(self.input_cells.to_network(points))

    def pixels_per_cell(self, image: int = 0) -> Point:
        """Photo px per *input* cell, (y, x): the factor on displacements."""
        scale, reduction = self.placement(image).scale, self.input_cells.reduction
        return reduction[0] / scale[0], reduction[1] / scale[1]

    def cell_at(self, pixel: Point, image: int = 0) -> Pair:
        """The output cell (y, x) nearest to a place (y, x) of the photo, which must lie on the photo."""
        placement = self.placement(image)
        if not all(0 <= p <= size for p, size in zip(pixel, placement.size, strict=True)):
            raise DeformscopeError(
                f"pixel (y, x) = ({pixel[0]:g}, {pixel[1]:g}): outside the photo, "
                f"which is {placement.size[0]} high and {placement.size[1]} wide"
            )
        network = placement.to_network(torch.tensor(pixel, dtype=torch.float64))
        cell = self.output_cells.to_cells(network).round().long().tolist()
        h, w = self.offset.shape[3:5]
        return min(max(cell[0], 0), h - 1), min(max(cell[1], 0), w - 1)


def stride_text(field: OffsetField) -> str:
    """Network px per output cell in words: one number, or down×across; "unknown" where places are not known."""
    if field.cells is None:
        return "unknown"
    return "×".join(dict.fromkeys(f"{px:.4g}" for px in field.reduction))


def cell_text(field: OffsetField) -> str:
    """Photo px per output cell in words, to two digits: one number, or down×across."""
    pairs = zip(field.pixels_per_cell(), field.stride, strict=True)
    return "×".join(dict.fromkeys(f"{float(f'{px * step:.2g}'):g}" for px, step in pairs)) + "\N{NO-BREAK SPACE}px"


def kernel_text(field: OffsetField) -> str:
    """A kernel's size and, unless it is 1, its own stride in words."""
    strided = f" (step {'×'.join(f'{step:.4g}' for step in field.stride)})" if set(field.stride) != {1} else ""
    return "×".join(map(str, field.kernel_size)) + strided


def _widened(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
