"""What one block of :func:`deformscope.capture` records: the calls of a model's samplers, placed in the image.

A pass begins when the model, or a part of it, is called with an image. From there tensors are followed through all
operators (:mod:`deformscope.axes.trails`), so that the place of every cell is known exactly or not at all, and so is
which convolution made the offsets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..axes.axes import Axes, axes_in, strided
from ..axes.trails import REPAIRS, Kind, Trail, Trails, images_in, share_non_finite, tensors_in
from ..fields.attention import AttentionField
from ..fields.field import OffsetSource
from ..fields.fields import Fields
from ..fields.places import CellGrid, Pair, Placement, Point
from ..ops.observe import DeformCall
from .attention import GRID_SAMPLERS, KERNEL, aligned_corners, bound, kernel_arguments, takes_locations
from .convolutions import OPERATORS, field_of, function
from .events import Event, NotUnderstood
from .modules import reader_of
from .watch import Watch

Placing = Callable[[int, Pair], tuple[Placement, ...]]
"""From the number of images and the size of the network's input to how the photos lie in it, where that was said."""


class Recorder:
    """The fields of one block, and what could not be read."""

    def __init__(self, model: nn.Module, placing: Placing, *, broken: bool, places: bool) -> None:
        self.fields = Fields()
        self.broken = broken
        """Offsets that are NaN or infinite reach torchvision's operator as far beyond the map."""
        self.trails = Trails() if places else None
        self.ran = False
        """Any part of the model has run."""
        self.samplers = 0
        """Calls of ``grid_sample`` in no module that is known to learn where it samples."""
        self.unread: dict[str, str] = {}
        """Samplers that were seen and not understood, by name, and why."""
        self.watch: Watch | None = None
        self._placing = placing
        named = list(model.named_modules())
        self._names = {id(module): name or type(model).__name__ for name, module in named}
        self._readers = {id(module): read for _, module in named if (read := reader_of(module)) is not None}
        inner = [child for _, module in named if id(module) in self._readers for child in module.children()]
        self._kernels = {id(child) for child in inner if takes_locations(child)}
        self._size: Pair | None = None
        self._image: Tensor | None = None
        self._placements: tuple[Placement, ...] = ()
        """How the model's own transform has placed its photos."""
        self._why_no_image = "no model was called"
        self._waiting, self._known_pass = False, False
        self._shares: float | None = None

    @property
    def _running(self) -> list[Event]:
        return self.watch.running if self.watch is not None else []

    def _running_name(self, otherwise: str = "") -> str:
        """Of the innermost module that is the model's."""
        running = (self._names.get(id(event.module)) for event in reversed(self._running))
        return next((name for name in running if name is not None), otherwise)

    @property
    def _sampling(self) -> Event | None:
        """The innermost running module that is a known sampler."""
        return next((event for event in reversed(self._running) if id(event.module) in self._readers), None)

    def enter(self, event: Event) -> None:
        """A module is called."""
        known = id(event.module) in self._names
        self.ran |= known
        if not self._running or (known and self._waiting):
            self._begin(event, known)

    def _begin(self, event: Event, known: bool) -> None:
        """A model is called, perhaps with an image; or a part of one that was called with no tensors, but paths, say.

        ``known``: it is the captured one, or a part of it, and not a model around it.
        """
        given = (event.args, event.kwargs)
        self._waiting = not any(tensor.is_floating_point() for tensor in tensors_in(given))
        if self.trails is not None and (self._known_pass or not known):
            trails = [self.trails.get(tensor) for tensor in tensors_in(given)]
            if any(trail is not None and not trail.is_image for trail in trails):
                return  # made out of an earlier part's output, in whose image it has its place
        images = images_in(given)
        if images or self._size is None:
            self._known_pass = known
            kind = type(event.module).__name__
            self._why_no_image = "" if images else f"{kind} was called with no image, or with images of several sizes"
            self._take(images)

    def _take(self, images: list[Tensor], placements: tuple[Placement, ...] = ()) -> None:
        """These are the network's input."""
        self._placements = placements
        self._size = (images[0].shape[-2], images[0].shape[-1]) if images else None
        if self.trails is not None:
            self.fields.forget_images()
            for image in images:
                self.trails.image(image)
            self._image = _shown(images[0]) if images else None

    def leave(self, event: Event, output: Any) -> None:
        """A module's call has ended, and returned ``output``."""
        module = event.module
        if self.trails is None and not self._readers:
            return
        outer = self._sampling if self._readers else None
        if outer is not None and isinstance(output, Tensor):
            for name, child in outer.module.named_children() if outer.module is not None else ():
                if child is module:
                    outer.parts[name] = output
        if id(module) in self._kernels and outer is not None and not outer.kernel:
            outer.kernel = kernel_arguments(bound(event))
        if id(module) in self._readers:
            if not event.recorded and output is not None:
                event.output, event.image_size = output, self._size
                self._read(self._names[id(module)], event, self._readers[id(module)])
        elif id(module) not in self._names:
            return
        elif isinstance(module, nn.Conv2d) and isinstance(output, Tensor) and self.trails is not None:
            trail = self.trails.get(output) or Trail(None, self._why_no_image)
            names = frozenset([self._names[id(module)]])
            self.trails.set(output, trail._replace(convolutions=names, replaced=None))
        elif type(module).__name__ == "GeneralizedRCNNTransform":
            sizes = [(image.shape[-2], image.shape[-1]) for image in event.args[0]]
            resized = [(h / size[0], w / size[1]) for size, (h, w) in zip(sizes, output[0].image_sizes, strict=True)]
            placements = tuple(Placement(size, scale) for size, scale in zip(sizes, resized, strict=True))
            self._take([output[0].tensors], placements)

    def before(self, name: str, args: tuple[Any, ...]) -> None:
        """An operator is called."""
        if name == REPAIRS and self.trails is not None and self.trails.get(args[0]) is not None:
            self._shares = share_non_finite(args[0])

    def operator(self, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """It ran."""
        name = kind.name
        if self.trails is not None:
            self.trails.follow(kind, args, kwargs, out, self._running_name)
            if name == REPAIRS and self._shares is not None and (trail := self.trails.get(out)) is not None:
                self.trails.set(out, trail._replace(replaced=max(self._shares, trail.replaced or 0.0)))
                self._shares = None
        if kind.sampler:
            self._sampler(name, Event(args, kwargs, output=out))

    def _sampler(self, name: str, event: Event) -> None:
        outer = self._sampling
        if name in GRID_SAMPLERS:
            value, grid = event.named("input", "grid").values() if len(event.args) < 2 else event.args[:2]
            if outer is not None:
                aligned = aligned_corners(name, event.args, event.kwargs)
                outer.samplers.append((grid.detach().clone(), tuple(value.shape), aligned))
                return
            self.samplers += 1
            if self.trails is not None and self.trails.get(grid) is not None:
                self._missed("grid_sample", "its places depend on the image")
        elif name in OPERATORS:
            self._read(name, event, OPERATORS[name])
        elif outer is not None:
            if not outer.kernel and name.endswith("::ms_deform_attn_forward"):
                outer.kernel = kernel_arguments(event.named(*KERNEL))
        else:
            self._missed(name, "an operator that is not known")

    def function(self, name: str, given: dict[str, Any], out: Any) -> None:
        """An autograd Function with a sampler's arguments ran."""
        outer = self._sampling
        kernel = kernel_arguments(given)
        if outer is not None and kernel:
            outer.kernel = outer.kernel or kernel
        else:
            self._read(name, Event((), given, output=out), function)

    def _read(self, name: str, event: Event, read: Callable[[Event], DeformCall | AttentionField | None]) -> None:
        """Record a call; if it is not understood, the model goes on."""
        assert self.watch is not None
        module = self._names.get(id(event.module)) if event.module is not None else None
        try:
            with self.watch.away(), torch.inference_mode(False), torch.no_grad():
                found = read(event)
        except NotUnderstood as why:
            self._missed("" if module else name, str(why), module)
            return
        if isinstance(found, AttentionField):
            n = found.points.shape[0]
            placements, image = self._placed(n)
            self.fields.add_attention(replace(found, name=module or name, placements=placements, image=image))
        elif found is not None:
            self.convolution(found, module)

    def _missed(self, name: str, why: str, module: str | None = None) -> None:
        """A sampler that nobody here can read: an operator or Function in a module, or the module itself."""
        module = module or self._running_name()
        self.unread.setdefault(" in ".join(filter(None, (name, module))), why)

    def convolution(self, call: DeformCall, name: str | None = None) -> None:
        """A deformable convolution ran, in the module of this name or in the innermost one that runs."""
        assert self.watch is not None
        if self._sampling is not None:
            self._sampling.recorded = True
        name = name or self._running_name("deform_conv2d")
        known: dict[str, Any] = {"unplaced": "capture was asked for no places"}
        if self.trails is not None:
            known = self._where(self.trails, call)
        placements, image = self._placed(call.offset.shape[0])
        with self.watch.away():
            field = field_of(call, placements, name=name, network_size=self._size, image=image, **known)
        self.fields.add(field)

    def _where(self, trails: Trails, call: DeformCall) -> dict[str, Any]:
        """Where a call's cells lie, and what made its offsets; notes the trail of its output."""
        given = call.input if call.channels_last is None else call.channels_last
        channel = given.ndim - (3 if call.channels_last is None else 1)
        trail = trails.get(given) or Trail(None, self._why_no_image or "its input does not come from the image")
        axes = None if trail.axes is None else trail.axes.absorbed(channel, given.shape[channel])
        cells = None if axes is None else axes.grid((call.input.shape[-2], call.input.shape[-1]))
        why = trail.lost or ("" if cells else "its input is no map of the image's rows and columns")
        made = call.offset if call.made is None else call.made
        offset = trails.get(made) or Trail(None)
        of_offsets = None if offset.axes is None else offset.axes.grid((call.offset.shape[-2], call.offset.shape[-1]))
        source = OffsetSource(
            tuple(sorted(offset.convolutions)), _apart(call, cells, of_offsets), offset.replaced or 0.0
        )
        below = "" if trail.call is None else list(self.fields)[trail.call]
        out, places = call.output, axes
        if isinstance(out, Tensor):
            if axes is not None and cells is not None and call.places_output:
                places = _behind(axes, call).absorbed(channel, out.shape[channel]) if out.ndim == given.ndim else None
            fits = places is not None and places.shape == tuple(out.shape)
            lost = "" if fits else why or f"deformable convolution {self._running_name()!r}"
            trails.set(out, Trail(places if fits else None, lost, len(self.fields)))
        return {"cells": cells, "unplaced": "" if cells else why, "below": below, "source": source}

    def _placed(self, n: int) -> tuple[tuple[Placement, ...], Tensor | None]:
        """How n photos lie in the network's input, and that input; a head of regions has its own count of maps."""
        placements = self._placing(n, self._size) if self._size is not None else ()
        placements = placements or (self._placements if len(self._placements) == n else ())
        return placements, self._image if self._image is not None and len(self._image) == n else None


def _apart(call: DeformCall, cells: CellGrid | None, made: CellGrid | None) -> Point | None:
    """How far (y, x) the cells of a call's offsets lie from the cells that they move, in input cells, at most."""
    if cells is None or made is None:
        return None
    moved = cells.strided(call.kernel_size, call.stride, call.padding, call.dilation)
    apart = []
    for axis, size in enumerate(call.offset.shape[-2:]):
        gaps = [
            made.origin[axis] + made.reduction[axis] * c - moved.origin[axis] - moved.reduction[axis] * c
            for c in (0, size - 1)
        ]
        apart.append(max(gaps, key=abs) / cells.reduction[axis])
    return apart[0], apart[1]


def _behind(axes: Axes, call: DeformCall) -> Axes:
    """The axes of a convolution's output: those of its input, whose two dimensions of places are strided."""
    placed = [index for index, dim in enumerate(axes.dims) if axes_in(dim)]
    for side, index in enumerate(placed):
        kernel, stride, padding = call.kernel_size[side], call.stride[side], call.padding[side]
        size = call.offset.shape[side - 2]
        axes = strided(axes, index, kernel, stride, padding, call.dilation[side], size) or axes
    return axes


def _shown(image: Tensor) -> Tensor | None:
    """An image for people: uint8 [n h w 3], each from its minimum to its maximum; None for what has no such form."""
    if image.ndim > 4 or image.shape[-3] > 4:
        return None
    with torch.no_grad():
        pixels = (image if image.ndim == 4 else image[None]).detach().float().nan_to_num(0.0, 0.0, 0.0)
        pixels = pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1].expand(-1, 3, -1, -1)
        low, high = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
        scaled = (pixels - low) / (high - low).clamp(min=1e-12) * 255
        return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()
