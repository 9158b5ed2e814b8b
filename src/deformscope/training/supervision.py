"""Supervision of the offsets of any model's deformable convolutions, as a loss during training.

The paper names as future work "the study of the behaviour of the deformable convolution when direct supervision is
enforced on the offset field" (Zhang et al., ICPRAM 2021, Section 5).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..detectors.detector import mean_of_processes
from ..errors import DeformscopeError
from ..fields.field import OffsetField
from ..fields.fields import Fields
from ..fields.stack import composed, upstream
from ..recording.capture import capture
from .live import LiveCall, LiveCalls
from .offset_losses import LOSSES, Boxes, Target, assigned, checked, kernels_of

ANY_SIZE = (0.0, float("inf"))


@dataclass(frozen=True)
class Schedule:
    """A weight as a function of the step.

    ``constant``; ``decay``, linear to zero at ``steps``; ``warmup``, linear from zero to the full weight at ``steps``.

    Example:
        >>> weight = Schedule(0.5, "decay", steps=1000)
        >>> weight(0), weight(500), weight(2000)
        (0.5, 0.25, 0.0)
    """

    weight: float
    kind: Literal["constant", "decay", "warmup"] = "constant"
    steps: int = 1

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise DeformscopeError(f"weight={self.weight}: expected at least 0")
        if self.steps < 1:
            raise DeformscopeError(f"steps={self.steps}: expected at least 1")
        if self.kind not in ("constant", "decay", "warmup"):
            raise DeformscopeError(f"kind={self.kind!r}: expected one of 'constant', 'decay', 'warmup'")

    def __call__(self, step: int) -> float:
        """The weight at a step, counted from 0."""
        passed = min(step / self.steps, 1.0)
        return self.weight * {"constant": 1.0, "decay": 1 - passed, "warmup": passed}[self.kind]


class OffsetSupervision:
    """Supervise the offsets of deformable convolutions with the places and sizes of objects.

    In the training loop::

        supervision = OffsetSupervision(model, images[:1], ["*layer4*"], weight=0.5)
        for images, targets in loader:
            with supervision:                                         # the forward pass, without the backward pass
                loss = criterion(model(images), targets)
            loss = loss + supervision.loss([t["boxes"] for t in targets])
            ...

    Every cell inside a box is supervised by the smallest box around it; cells outside all boxes are not supervised. The
    model is called once with ``example``, without gradients and in eval mode, to find its deformable convolutions and
    the places of their cells; if ``example`` is a callable, it is called instead (``lambda: model.features(images)``).
    All convolutions that call torchvision's or deformscope's operator are found, by module or function.

    ``layers``: shell patterns of the names in :func:`deformscope.capture`, or a mapping from patterns to the range
    (smallest, largest) of sqrt(box area), network px, of the boxes that supervise the layer. ``loss``: one or more,
    which are summed, of ``centre`` (d_f points to the box's centre) and ``extent`` (d_k extends over four fifths of its
    sides). ``weight``: a number, or a function of the step such as :class:`Schedule`.
    ``composed``: number of stacked layers, with the matched one on top, that are supervised as one composed field
    (:func:`deformscope.fields.stack.composed`). ``within``: ``"box"``, or ``"mask"`` for cells on objects only.
    ``task_gradient``: factor on the gradient of other losses into the offsets through the sampling (0.1 in RepPoints).
    ``side_branch``: a control that leaves the offsets alone; the loss is on other convolutions of the same input, in
    ``side_branches``, which have to be given to the optimiser.

    Raises DeformscopeError for patterns without a match, unknown losses, and kernels for which a loss is undefined.

    Example:
        >>> supervision = OffsetSupervision(model, images[:1], layers=["*layer4*"], weight=0.5)
        >>> with supervision:
        ...     loss = criterion(model(images), targets)
        >>> loss = loss + supervision.loss([t["boxes"] for t in targets])       # boxes: xyxy, px of the images
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        layers: Sequence[str] | Mapping[str, tuple[float, float]] = ("*",),
        *,
        loss: Sequence[str] = ("centre", "extent"),
        weight: float | Callable[[int], float] = 0.5,
        composed: int = 1,
        within: str = "box",
        task_gradient: float = 1.0,
        side_branch: bool = False,
    ) -> None:
        self.terms = (loss,) if isinstance(loss, str) else tuple(loss)
        unknown = [term for term in self.terms if term not in LOSSES]
        if unknown or not self.terms:
            raise DeformscopeError(f"loss={loss!r}: expected some of {', '.join(map(repr, LOSSES))}")
        if within not in ("box", "mask"):
            raise DeformscopeError(f"within={within!r}: expected 'box' or 'mask'")
        if composed < 1:
            raise DeformscopeError(f"composed={composed}: expected at least 1, each layer by itself")
        self.weight = weight if callable(weight) else Schedule(weight)
        self.within, self.step = within, 0
        traced = _traced(model, example)
        self.sizes = _matched(traced, layers)
        self._check_kernels(traced)
        self._traced = traced
        self._stacks = {name: [one.name for one in upstream(traced, name, composed)] for name in self.sizes}
        self._live = LiveCalls(model, list(traced), task_gradient)
        self.side_branches = nn.ModuleDict()
        if side_branch:
            self._branch(model, example)

    @property
    def layers(self) -> tuple[str, ...]:
        """The supervised layers."""
        return tuple(self.sizes)

    def __enter__(self) -> OffsetSupervision:
        """Start recording the offsets, without earlier ones."""
        self._live.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.close()

    def loss(self, targets: Sequence[Target], step: int | None = None) -> Tensor:
        """The weighted loss of the block's forward pass, averaged over the cells in boxes.

        ``targets``: one per image, ``boxes`` (xyxy ``[t 4]``) or a dictionary with ``boxes``, and with ``masks`` for
        ``within="mask"``. They are in px of the network's input or, if the model resizes as torchvision's detectors do,
        of the photos. ``step`` defaults to the number of calls. With several processes the average is over the cells of
        all, if gradients are averaged over processes, as DistributedDataParallel does.

        Raises DeformscopeError for boxes without area, and if a layer was not called, or without gradients.
        """
        calls = self._seen()
        weight = self.weight(self.step if step is None else step)
        self.step = self.step + 1 if step is None else step + 1
        images = next(iter(calls.values())).offset.shape[0]
        given = [_scaled(t, s) for t, s in self._paired(checked(targets, images, self.within))]
        parts, counts = zip(*(self._layer_loss(name, calls, given) for name in self.sizes), strict=True)
        self._live.calls = {}
        total = torch.stack(parts).sum()
        # With this divisor averaged gradients are those of the mean over all processes.
        count = mean_of_processes(torch.tensor(float(sum(counts)), device=total.device))
        return weight * total / count.clamp(min=1 / 1024)

    def _layer_loss(
        self, name: str, calls: Mapping[str, LiveCall], targets: Sequence[Mapping[str, Tensor]]
    ) -> tuple[Tensor, int]:
        """The sum over a layer's positive cells, and their number."""
        field = self.field(name, calls)
        centres = field.output_cells.to_network(_indices(field))
        index = torch.stack([assigned(centres, target, self.sizes[name]) for target in targets])
        image, y, x = torch.nonzero(index >= 0, as_tuple=True)
        if not len(image):
            return 0 * field.offset.sum(), 0  # in the graph in any case, for DistributedDataParallel
        starts = torch.tensor([0, *(len(target["boxes"]) for target in targets)], device=index.device).cumsum(0)
        every = torch.cat([target["boxes"] for target in targets]).to(field.offset)
        corners = every[index[image, y, x] + starts[image]].flip(-1)  # (y2, x2, y1, x1)
        boxes = Boxes((corners[:, :2] + corners[:, 2:]) / 2, (corners[:, :2] - corners[:, 2:]) / 2)
        kernels = kernels_of(field, image, y, x)
        return torch.stack([LOSSES[term](kernels, boxes).sum() for term in self.terms]).sum(), len(image)

    def field(self, name: str, calls: Mapping[str, LiveCall] | None = None) -> OffsetField:
        """The field, with gradients, that is supervised for layer ``name``."""
        calls = self._live.calls if calls is None else calls
        fields = []
        for member in self._stacks[name]:
            call, branch = calls[member], _key(member)
            offset = self.side_branches[branch](call.input) if branch in self.side_branches else None
            fields.append(_field(self._traced[member], call, offset))
        return composed(fields) if len(fields) > 1 else fields[0]

    def _seen(self) -> Mapping[str, LiveCall]:
        calls, wanted = self._live.calls, dict.fromkeys(member for stack in self._stacks.values() for member in stack)
        for name in wanted:
            if name not in calls:
                raise DeformscopeError(
                    f"layer {name!r}: not seen with gradients since the last loss; expected a forward pass inside "
                    "`with supervision:` before supervision.loss (under checkpointing with use_reentrant=False)"
                )
            if not calls[name].offset.requires_grad and not self.side_branches:
                raise DeformscopeError(
                    f"layer {name!r}: nothing that learns makes its offsets; thaw its offset convolution, or leave "
                    "the layer out of layers=..."
                )
        twice = [name for name in calls if name not in self._traced and name.partition("#")[0] in self._traced]
        if twice:
            raise DeformscopeError(
                f"layer {twice[0].partition('#')[0]!r}: called more often than by the example; expected one forward "
                "pass a `with supervision:` block"
            )
        return calls

    def _paired(self, targets: list[dict[str, Tensor]]) -> Iterator[tuple[dict[str, Tensor], tuple[float, float]]]:
        scales = self._live.scales if len(self._live.scales) == len(targets) else [(1.0, 1.0)] * len(targets)
        return zip(targets, scales, strict=True)

    def _check_kernels(self, traced: Fields) -> None:
        for name in self.sizes:
            kernel = traced[name].kernel_size
            if min(kernel) < 2 and "extent" in self.terms:
                raise DeformscopeError(
                    f"layer {name!r}: a kernel of {kernel[0]}×{kernel[1]} spreads over no area, which loss='extent' is "
                    "about; leave the layer out, or take loss='centre'"
                )

    def _branch(self, model: nn.Module, example: Any) -> None:
        """Convolutions like those that predict the offsets, beside them, starting at zero."""
        with torch.enable_grad(), self:  # there are no records without gradients
            _run(model, example)
        for name in dict.fromkeys(member for stack in self._stacks.values() for member in stack):
            call = self._live.calls[name]
            like, channels = self._traced[name], (call.input.shape[1], call.offset.shape[1])
            branch = nn.Conv2d(*channels, *_geometry(like).values())
            for parameter in branch.parameters():
                nn.init.zeros_(parameter)
            self.side_branches[_key(name)] = branch.to(call.input)
        self._live.calls = {}


def _geometry(field: OffsetField) -> dict[str, Any]:
    return {name: getattr(field, name) for name in ("kernel_size", "stride", "padding", "dilation")}


def _field(traced: OffsetField, call: LiveCall, offset: Tensor | None) -> OffsetField:
    """The offset of a call, or another one in its place, as a field with gradients, like the traced one."""
    return OffsetField.from_tensor(
        call.offset if offset is None else offset,
        **_geometry(traced),
        offset_groups=traced.offset.shape[1],
        input_size=call.input.shape[-2:],
        reduction=traced.input_cells.reduction,
        origin=traced.input_cells.origin,
        name=traced.name,
    )


def _run(model: nn.Module, example: Any) -> None:
    """Run the model in eval mode, and restore the mode of every module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        example() if callable(example) else model(example)
    finally:
        for module, training in modes:
            module.training = training


def _traced(model: nn.Module, example: Any) -> Fields:
    with torch.no_grad(), capture(model) as fields:
        _run(model, example)
    return fields


def _matched(
    traced: Fields, layers: Sequence[str] | Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """The layers that match, in the network's order, with the range of box sizes; of two patterns the later one
    counts."""
    if isinstance(layers, str):
        layers = [layers]
    patterns = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(layers, ANY_SIZE)
    if not patterns:
        raise DeformscopeError(f"layers=[]: expected patterns of {', '.join(map(repr, traced))}")
    found: dict[str, tuple[float, float]] = {}
    for pattern, sizes in patterns.items():
        names = [n for n in traced if fnmatch.fnmatchcase(n, pattern) or f".{pattern}." in f".{n}."]
        if not names:
            raise DeformscopeError(
                f"layers: {pattern!r} matches no deformable convolution; the model has {', '.join(map(repr, traced))}"
            )
        if not 0 <= sizes[0] < sizes[1]:
            raise DeformscopeError(f"layers[{pattern!r}]={sizes}: expected (least, largest) sqrt(box area), px")
        found |= dict.fromkeys(names, sizes)
    return {name: found[name] for name in traced if name in found}


def _indices(field: OffsetField) -> Tensor:
    """(y, x) of every output cell [h w 2]."""
    h, w = field.offset.shape[3:5]
    y, x = (torch.arange(size, device=field.offset.device, dtype=field.offset.dtype) for size in (h, w))
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)


def _scaled(target: dict[str, Tensor], scale: tuple[float, float]) -> dict[str, Tensor]:
    """A target of a photo, in network px."""
    if scale == (1.0, 1.0):
        return target
    boxes = target["boxes"] * target["boxes"].new_tensor([scale[1], scale[0]] * 2)
    if "masks" not in target:
        return target | {"boxes": boxes}
    size = [round(side * factor) for side, factor in zip(target["masks"].shape[1:], scale, strict=True)]
    masks = nn.functional.interpolate(target["masks"][:, None].float(), size=size, mode="nearest")[:, 0] > 0
    return target | {"boxes": boxes, "masks": masks}


def _key(name: str) -> str:
    """A layer's name as the name of a module, which has no dots."""
    return name.replace(".", "/")
