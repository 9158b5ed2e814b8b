"""Follow tensors from the image through a network's operators: where their cells lie, and what they came through.

What an ``nn.Conv2d`` puts out carries its name through views, slices, sums, clamps and the like, up to the offsets that
an operator gets; what a deformable call puts out carries the call's number.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .axes import Axes, image_axes
from .rules import MAKING, output_places
from .windows import Operation, Places

REPAIRS = "aten::nan_to_num"
"""With which models replace NaN and infinity."""
LARGE = 5
"""Least height and width of an image, px: points and boxes have fewer numbers."""
MOST = 20_000
"""Tensors that are remembered before those that are gone are forgotten."""


class Trail(NamedTuple):
    """What is known of a tensor that was made out of the image."""

    places: Places
    lost: str = ""
    """The operator after which the places are not known."""
    call: int | None = None
    """The number of the deformable call through which it came last, on whichever way."""
    convolutions: frozenset[str] = frozenset()
    """The ``nn.Conv2d`` modules that made it, by name."""
    replaced: float | None = None
    """Share of its values that ``nan_to_num`` replaced; None: it came through none."""

    @property
    def is_image(self) -> bool:
        """Whether the cells are still those of the image itself, and no sampler or convolution has made them."""
        axes = self.axes
        plain = self.call is None and not self.convolutions
        return plain and axes is not None and axes.low == axes.high == (0.5, 0.5) and axes.coarsest == (1.0, 1.0)

    @property
    def axes(self) -> Axes | None:
        """Its axes, where they are known as a whole."""
        return self.places if isinstance(self.places, Axes) else None


class Kind(NamedTuple):
    """What is known of an operator."""

    operator: Any
    name: str
    """Without overload, and of in-place ones without the last underscore."""
    pointwise: bool
    sampler: bool


class Trails:
    """The trails of tensors, by identity, for as long as the tensors live."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], Trail]] = {}

    def get(self, tensor: Any) -> Trail | None:
        """The trail of a tensor; None for one that does not come from the image, and for whatever is no tensor."""
        found = self._known.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def set(self, tensor: Tensor, trail: Trail) -> None:
        """Set the trail of a tensor."""
        if len(self._known) > MOST:
            self._known = {key: one for key, one in self._known.items() if one[0]() is not None}
        self._known[id(tensor)] = weakref.ref(tensor), trail

    def image(self, tensor: Tensor) -> None:
        """Note that this tensor is an image that a model is called with."""
        self.set(tensor, Trail(image_axes(tensor.shape)))

    def places(self, tensor: Any) -> Places:
        """The places of a tensor's cells."""
        trail = self.get(tensor)
        return None if trail is None else trail.places

    def follow(
        self, kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, module: Callable[[], str]
    ) -> None:
        """An operator ran: note the trails of what it returned. ``module()`` is the name of the module that runs."""
        get = self.get
        sources = [(one, trail) for one in args if type(one) is not int and (trail := get(one)) is not None]
        for one in args:
            if type(one) in (list, tuple):
                sources += [(tensor, trail) for tensor in one if (trail := get(tensor)) is not None]
        if kwargs:
            sources += [(one, trail) for one in kwargs.values() if (trail := get(one)) is not None]
        if not sources or kind.name in MAKING:
            return
        if kind.pointwise and len(sources) == 1 and isinstance(out, Tensor):
            source, trail = sources[0]
            if source.shape == out.shape:
                if source is not out:
                    self.set(out, trail)
                return
        trails = [trail for _, trail in sources]
        known = [trail.places for trail in trails]
        calls = [trail.call for trail in trails if trail.call is not None]
        call = max(calls) if calls else None
        # Convolutions begin a new trail of names; everything else hands on its inputs'.
        handed = [] if "convolution" in kind.name or "::conv" in kind.name else trails
        names = frozenset().union(*(trail.convolutions for trail in handed))
        shares = [trail.replaced for trail in handed if trail.replaced is not None]
        before = next((trail.lost for trail in trails if trail.lost), "")
        for number, tensor in enumerate([out] if isinstance(out, Tensor) else tensors_in(out)):
            op = Operation(kind.name, args, kwargs, tensor, number, self.places)
            places = output_places(op, known, kind.pointwise)
            lost = ""
            if places is None:
                lost = before if all(one is None for one in known) else f"{kind.name} in {module() or 'no module'}"
            self.set(tensor, Trail(places, lost, call, names, max(shares) if shares else None))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of an operator's or a module's arguments or results, however they are nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one)
    elif hasattr(value, "values") and hasattr(value, "keys"):  # dicts, and what is made like them
        for one in value.values():
            yield from tensors_in(one)
    elif isinstance(getattr(value, "tensors", None), Tensor):  # NestedTensor, ImageList
        yield value.tensors


def images_in(values: Any) -> list[Tensor]:
    """The images that a model is called with: its float tensors ``[n c h w]`` (or ``[n t c h w]``), or where there are
    none, ``[c h w]``; none if they differ in size."""
    floats = [one for one in tensors_in(values) if one.ndim >= 3 and torch.is_floating_point(one)]
    found = [one for one in floats if min(one.shape[-2:]) >= LARGE]
    batches = [one for one in found if one.ndim > 3] or [one for one in found if one.shape[0] <= 4]
    return batches if len({one.shape[-2:] for one in batches}) == 1 else []


def share_non_finite(tensor: Tensor) -> float:
    """Share of the values that are NaN or infinite."""
    return 1.0 - torch.isfinite(tensor).float().mean().item() if tensor.numel() else 0.0
