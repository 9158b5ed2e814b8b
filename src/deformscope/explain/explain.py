"""Attribute one output to sampling points and pixels: one forward and one backward pass for all layers.

Every deformable call's modulation is multiplied by ones, of which the gradient is taken: a_n = ∂y/∂1_n =
m_n · ⟨w_nᵀ ∂y/∂z, x(P_n)⟩, exact, for v1 and v2 alike; and so are the weights of deformable attention. The lower
layers' gradients of the same pass are the answer through the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..detectors.detector import Detection, Detector
from ..errors import DeformscopeError, NoDeformableCall
from ..fields.field import OffsetField, Placement
from ..fields.fields import Fields
from ..ops.intercept import Inputs, intercepting
from ..photo import Photo, read
from ..recording.capture import capture, placed
from ..recording.unchanged import unchanged
from .attention import AttentionAttribution, Ones, weights_times_ones
from .explanation import Attribution, Explanation
from .receptive_field import ReceptiveField
from .sampled import SampledCall, sampled_calls
from .targets import checked, of_detection, row_of


def explain(
    model: nn.Module,
    photo: Photo | Any,
    detection: int | Detection = 0,
    of: str | Callable[[Any], Tensor] = "score",
    *,
    at: tuple[float, float] | None = None,
    layers: Sequence[str] = (),
    min_score: float = 0.05,
) -> Explanation:
    """Why this detection? Attribute one of its outputs to the sampling points of all deformable convolutions, and of
    deformable attention.

    ``detection`` is its number on the photo, best first; ``at``, a place (y, x) in photo px, chooses the best whose box
    holds it instead. ``of`` is what is explained of it: ``score`` (the class's log-odds), ``iou`` (the IoU branch's
    logit, where there is one), or a side of its box, ``left``, ``top``, ``right``, ``bottom`` (photo px, before
    clipping). Or a function: of the photo's detections with their traces
    (:data:`deformscope.detectors.detector.TRACES`), giving one number.

    Any other ``model`` gets ``photo`` as its input (a float tensor ``[1 c h w]``, or what holds one: a list, a dict; a
    tuple is its arguments), and ``of`` is a function of its output.

    ``detection`` may also be one row of another explanation's ``detection``: the same cell or region is explained, be
    it a detection here or not. So one detector can be compared with itself without offsets. For other models it is what
    figures show. ``layers`` are patterns of layer names (default: all).

    The model's mode, its weights and their gradients stay as they are. Attribution: Zhang et al. (ICPRAM 2021), Eq. 1,
    by the product rule.

    Raises DeformscopeError where there is no such detection, output or layer, and where no gradient leads back.

    Example:
        >>> why = ds.explain(detector, "photo.jpg", of="score")
        >>> why.layer().by_cell().shape     # what each cell's kernel adds to the log-odds of "cat"
        torch.Size([8, 13])
        >>> radius = why.receptive_field.radius(0.5)    # px that hold half of what the score depends on
    """
    with torch.inference_mode(False), torch.enable_grad(), unchanged(model):
        if isinstance(model, Detector):
            run = _of_detector(model, photo, detection, of, at, min_score)
        else:
            run = _of_model(model, photo, detection, of)
        return _explained(run, layers)


@dataclass
class _Run:
    """A forward pass whose deformable calls can be differentiated."""

    model: nn.Module
    image: Tensor
    fields: Fields
    calls: list[_Call]
    sampled: list[SampledCall]
    ones: Ones
    of: str
    value: Tensor
    placement: Placement
    photo: np.ndarray | None
    detection: Detection


@dataclass(frozen=True)
class _Call:
    """A deformable call's tensors, with gradients: the ones in its modulation, and the offset that it got."""

    place: int
    """Number of its field in the block: other samplers, which cannot be changed, have fields too."""
    wanted: tuple[Tensor, Tensor]

    def attribution(self, field: OffsetField, ones: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Tensor]:
        """a_n [g k h w] and ∂y/∂Δp_n [g k h w 2] of the gradients of ``wanted``; None: y does not depend on them."""
        _, g, k, h, w, _ = field.offset.shape
        points, moves = (
            (torch.zeros_like(one) if gradient is None else gradient).detach()
            for one, gradient in zip(self.wanted, (ones, offset), strict=True)
        )
        return points.reshape(g, k, h, w), moves.reshape(g, k, 2, h, w).movedim(2, -1)


def _of_detector(
    model: Detector,
    photo: Photo,
    detection: int | Detection,
    of: str | Callable[[Any], Tensor],
    at: tuple[float, float] | None,
    min_score: float,
) -> _Run:
    array = read(photo)
    model.check_explainable()
    batch, placements = model.prepare([array])
    if not batch.is_floating_point():
        raise DeformscopeError(
            f"{model.name}: its prepare makes a batch of {batch.dtype}; expected floats to explain it"
        )
    batch = batch.detach().to(next(model.parameters()).device).requires_grad_()

    def predict() -> Detection:
        with placed(placements):
            if isinstance(detection, int):
                return model.detect(batch, placements, min_score=min_score)[0]
            given = {key: value.to(batch.device) for key, value in detection.items()}
            return given | model.repredict(batch, placements[0], given)

    found, fields, calls, sampled, ones = _recorded(model, predict)
    name = of if isinstance(of, str) else getattr(of, "__name__", "function")
    chosen: int | None = 0
    if isinstance(detection, int):
        # A function may ask of all detections, of which there may be none.
        optional = callable(of) and at is None and not len(found["boxes"])
        chosen = None if optional else row_of(found, detection, at, (array.shape[0], array.shape[1]), min_score)
    value = of(found) if callable(of) else of_detection(found, chosen or 0, of)
    row = {} if chosen is None else {key: tensor[chosen : chosen + 1].detach().cpu() for key, tensor in found.items()}

    return _Run(model, batch, fields, calls, sampled, ones, name, checked(value, name), placements[0], array, row)


def _of_model(model: nn.Module, input: Any, detection: int | Detection, of: str | Callable[[Any], Tensor]) -> _Run:
    if isinstance(of, str):
        raise DeformscopeError(
            f"of={of!r}: {type(model).__name__} is no detector of deformscope, whose outputs have names; "
            "give a function of the model's output, such as of=lambda output: output[0, 3]"
        )
    leaves: list[Tensor] = []
    prepared = _with_leaves(input, leaves)
    images = [leaf for leaf in leaves if leaf.ndim >= 3 and leaf.shape[:-3].numel() == 1]
    if not images:
        raise DeformscopeError(
            f"photo of type {type(input).__name__}: {type(model).__name__} gets it as its input; expected a float "
            "tensor [1 c h w] of one image, or a list, dict or tuple of arguments that holds one"
        )
    arguments = prepared if isinstance(prepared, tuple) else (prepared,)
    output, fields, calls, sampled, ones = _recorded(model, lambda: model(*arguments))
    name = getattr(of, "__name__", "function")
    size = (images[0].shape[-2], images[0].shape[-1])
    row = {} if isinstance(detection, int) else {key: value.cpu() for key, value in detection.items()}
    value = checked(of(output), name)
    return _Run(model, images[0], fields, calls, sampled, ones, name, value, Placement(size), None, row)


def _recorded(model: nn.Module, forward: Callable[[], Any]) -> tuple[Any, Fields, list[_Call], list[SampledCall], Ones]:
    """Run ``forward`` with ones in every modulation and attention's weights; a model without deformable calls has no
    fields and no calls."""
    calls: list[_Call] = []

    def change(number: int, call: Inputs) -> Inputs:
        n, channels, h, w = call.offset.shape
        like = call.offset if call.mask is None else call.mask
        ones = torch.ones(n, channels // 2, h, w, dtype=like.dtype, device=like.device, requires_grad=True)
        offset = call.offset if call.offset.requires_grad else call.offset.detach().requires_grad_()
        calls.append(_Call(len(fields), (ones, offset)))
        # Nobody asks for the weight's gradient, which costs as much as the points'.
        return Inputs(call.input, offset, call.weight.detach(), ones if call.mask is None else call.mask * ones)

    output, fields, ones = None, Fields(), Ones({})
    sampled: list[SampledCall] = []
    try:
        with (
            capture(model) as fields,
            intercepting(change),
            weights_times_ones(model) as ones,
            sampled_calls(model, fields) as sampled,
        ):
            output = forward()
    except NoDeformableCall:
        if calls:
            raise
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise DeformscopeError(
            f"model {type(model).__name__}: has no gradient path; its weights or its input were made in "
            "inference_mode; make them outside of it"
        ) from None
    return output, fields, calls, sampled, ones


def _explained(run: _Run, layers: Sequence[str]) -> Explanation:
    named = list(run.fields.items())
    calls: list[_Call | SampledCall] = [*run.calls, *(call for call in run.sampled if call.place < len(named))]
    pairs = {
        name: (field, call)
        for (name, field), call in sorted(((named[call.place], call) for call in calls), key=lambda pair: pair[1].place)
        if field.offset.shape[0] == 1  # a call inside a region-of-interest head has its own count of maps
    }
    attention = {name: field for name, field in run.fields.attention.items() if field.points.shape[0] == 1}
    weighed = run.ones.of(attention)
    missing = tuple(name for name in (*run.fields, *run.fields.attention) if name not in pairs and name not in weighed)
    chosen = Fields(
        {name: field for name, (field, _) in pairs.items()}, {name: attention[name] for name in weighed}
    ).matching(layers)
    pairs, weighed = {name: pairs[name] for name in chosen}, {name: weighed[name] for name in chosen.attention}
    wanted = [run.image, *(tensor for _, call in pairs.values() for tensor in call.wanted), *weighed.values()]
    image, *rest = _gradients(run, wanted)
    image = torch.zeros_like(run.image) if image is None else image
    found = {}
    for index, (name, (field, call)) in enumerate(pairs.items()):
        points, moves = call.attribution(field, *rest[2 * index : 2 * index + 2])
        found[name] = Attribution(field.to("cpu"), points.cpu(), moves.cpu(), index)
    through = {}
    for (name, ones), gradient in zip(weighed.items(), rest[2 * len(pairs) :], strict=True):
        points = (torch.zeros_like(ones) if gradient is None else gradient).detach().cpu()
        layer = chosen.attention[name].to("cpu")
        through[name] = AttentionAttribution(layer, points.reshape(layer.points.shape[1:4]))
    energy = image.detach().reshape(-1, *run.image.shape[-2:]).abs().sum(dim=0).cpu()
    return Explanation(
        layers=found,
        attention=through,
        receptive_field=ReceptiveField(energy, run.placement),
        of=run.of,
        value=float(run.value.detach()),
        photo=run.photo,
        detection=run.detection,
        class_names=tuple(getattr(run.model, "class_names", ())),
        detector=str(getattr(run.model, "name", type(run.model).__name__)),
        unexplained=missing,
    )


def _gradients(run: _Run, wanted: list[Tensor]) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(run.value, wanted, allow_unused=True)
    except RuntimeError as error:
        if "checkpoint" not in f"{type(error).__name__} {error}".lower():
            raise
        raise DeformscopeError(
            f"model {type(run.model).__name__}: it computes parts again in the backward pass (gradient checkpointing), "
            "which cannot be explained; switch that off, as by model.gradient_checkpointing_disable()"
        ) from None


def _with_leaves(value: Any, leaves: list[Tensor]) -> Any:
    """``value`` with its float tensors replaced by leaves that require gradients, which are added to ``leaves``."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return value
        leaves.append(value.detach().clone().requires_grad_())
        return leaves[-1]
    if isinstance(value, (list, tuple)):
        inside = [_with_leaves(one, leaves) for one in value]
        return tuple(inside) if isinstance(value, tuple) else inside
    if isinstance(value, dict):
        return {key: _with_leaves(one, leaves) for key, one in value.items()}
    return value
