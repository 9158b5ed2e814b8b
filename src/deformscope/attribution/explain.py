"""Attribute one output to sampling points and pixels: one forward and one backward pass for all layers.

Every deformable call's modulation is multiplied by ones, of which the gradient is taken: a_n = ∂y/∂1_n =
m_n · ⟨w_nᵀ ∂y/∂z, x(P_n)⟩, exact, for v1 and v2 alike; and so are the values that modules of plain operators sample,
and the weights of deformable attention. The lower layers' gradients of the same pass are the answer through the stack.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..detectors.detector import Detection, Detector
from ..errors import DeformscopeError, DeformscopeWarning, NoDeformableCall
from ..fields.field import Placement
from ..fields.fields import Fields
from ..ops.intercept import Inputs, intercepting
from ..photo import Photo, read
from ..recording.capture import capture, placed
from ..recording.unchanged import unchanged
from .attention import AttentionAttribution
from .explanation import Attribution, Explanation
from .factors import Factor, Factors, live_factors, of_operator
from .receptive_field import ReceptiveField
from .targets import checked, name_of, of_detection, row_of

UNSEEN = "its kernel gives no access to the values that it samples, or to their weights"


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

    The model's mode, its weights and their gradients, its buffers (running statistics too, in training mode) and the
    random numbers that come next stay as they are. Captured layers that cannot be attributed, such as compiled kernels,
    are named in ``unexplained``. Attribution: Zhang et al. (ICPRAM 2021), Eq. 1, by the product rule.

    Raises DeformscopeError where there is no such detection, output or layer, where no gradient leads back, and where
    gradient checkpointing computes what is explained again.

    Example:
        >>> why = ds.explain(detector, "photo.jpg", of="score")
        >>> why.layer().by_cell().shape     # what each cell's kernel adds to the log-odds of "cat"
        torch.Size([8, 13])
        >>> radius = why.receptive_field.radius(0.5)    # px that hold half of what the score depends on
    """
    with unchanged(model), torch.inference_mode(False), torch.enable_grad():
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
    factors: Factors
    of: str
    value: Tensor
    placement: Placement
    photo: np.ndarray | None
    detection: Detection


@dataclass(frozen=True)
class _Call:
    """A call of a deformable operator: the ones in its modulation, and the offset that it got, with gradients."""

    number: int
    place: int
    """Number of its field in the block: other samplers, which cannot be changed, have fields too."""
    modulated: bool
    """It has a modulation of its own."""
    factor: Factor


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

    found, fields, calls, factors = _recorded(model, predict)
    name = name_of(of)
    chosen: int | None = 0
    if isinstance(detection, int):
        # A function may ask of all detections, of which there may be none.
        optional = callable(of) and at is None and not len(found["boxes"])
        chosen = None if optional else row_of(found, detection, at, (array.shape[0], array.shape[1]), min_score)
    value = of(found) if callable(of) else of_detection(found, chosen or 0, of)
    row = {} if chosen is None else {key: tensor[chosen : chosen + 1].detach().cpu() for key, tensor in found.items()}

    return _Run(model, batch, fields, calls, factors, name, checked(value, name), placements[0], array, row)


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
    output, fields, calls, factors = _recorded(model, lambda: model(*arguments))
    name = name_of(of)
    size = (images[0].shape[-2], images[0].shape[-1])
    row = {} if isinstance(detection, int) else {key: value.cpu() for key, value in detection.items()}
    value = checked(of(output), name)
    return _Run(model, images[0], fields, calls, factors, name, value, Placement(size), None, row)


def _recorded(model: nn.Module, forward: Callable[[], Any]) -> tuple[Any, Fields, list[_Call], Factors]:
    """Run ``forward`` with ones in every modulation and attention's weights; a model without deformable calls has
    fields and calls of none."""
    calls: list[_Call] = []

    def change(number: int, call: Inputs) -> Inputs:
        n, channels, h, w = call.offset.shape
        like = call.offset if call.mask is None else call.mask
        ones = torch.ones(n, channels // 2, h, w, dtype=like.dtype, device=like.device, requires_grad=True)
        offset = call.offset if call.offset.requires_grad else call.offset.detach().requires_grad_()
        factor = Factor(ones, offset, of_operator)
        calls.append(_Call(number, len(fields), call.mask is not None, factor))
        # Nobody asks for the weight's gradient, which costs as much as the points'.
        return Inputs(call.input, offset, call.weight.detach(), ones if call.mask is None else call.mask * ones)

    output, fields, factors = None, Fields(), Factors({})
    try:
        with capture(model) as fields, intercepting(change), live_factors(model) as factors:
            output = forward()
    except NoDeformableCall as error:
        if calls:
            raise
        if "not understood" in str(error):
            warnings.warn(str(error), DeformscopeWarning, stacklevel=4)
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise DeformscopeError(
            f"model {type(model).__name__}: has no gradient path; its weights or its input were made in "
            "inference_mode; make them outside of it"
        ) from None
    return output, fields, calls, factors


def _explained(run: _Run, layers: Sequence[str]) -> Explanation:
    operators = {list(run.fields)[call.place]: call for call in run.calls}
    factors = run.factors.of(run.fields) | {name: call.factor for name, call in operators.items()}
    chosen = run.fields.matching(layers)
    counts = {name: field.offset.shape[0] for name, field in chosen.items()}
    counts |= {name: field.points.shape[0] for name, field in chosen.attention.items()}
    left_out = {name: f"it ran on {n} maps, those of regions" for name, n in counts.items() if n != 1}
    left_out |= {name: UNSEEN for name in counts if name not in factors and name not in left_out}
    if layers and len(left_out) == len(counts):
        said = "; ".join(f"{name} ({why})" for name, why in left_out.items())
        raise DeformscopeError(f"layers={list(layers)!r}: captured, but not explained: {said}")
    named = {name: factors[name] for name in counts if name not in left_out}
    places = [factor.places for factor in named.values() if factor.places is not None]
    image, *slopes = _gradients(run, [run.image, *(factor.live for factor in named.values()), *places])
    added = {name: factor.attributed(slope) for (name, factor), slope in zip(named.items(), slopes, strict=False)}
    of_places = dict(zip((name for name in named if name in chosen), slopes[len(named) :], strict=True))
    found = {}
    for name, moves in of_places.items():
        field, layout, call = chosen[name].to("cpu"), named[name].layout, operators.get(name)
        assert layout is not None
        if call is not None and not call.modulated:  # the ones were captured as its modulation
            field = replace(field, modulation=None)
        points = layout(field, added[name])[..., 0].contiguous()
        moved = layout(field, moves).contiguous()
        found[name] = Attribution(field, points, moved, None if call is None else call.number)
    through = {}
    for name, of_attention in chosen.attention.items():
        if name in added:
            layer = of_attention.to("cpu")
            through[name] = AttentionAttribution(layer, added[name].reshape(layer.points.shape[1:4]))
    energy = image.reshape(-1, *run.image.shape[-2:]).abs().sum(dim=0)
    return Explanation(
        layers=found,
        attention=through,
        unexplained=left_out,
        receptive_field=ReceptiveField(energy, run.placement),
        of=run.of,
        value=float(run.value.detach()),
        photo=run.photo,
        detection=run.detection,
        class_names=tuple(getattr(run.model, "class_names", ())),
        detector=str(getattr(run.model, "name", type(run.model).__name__)),
    )


def _gradients(run: _Run, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of y on the CPU; zeros where it does not depend on a tensor."""
    try:
        found = torch.autograd.grad(run.value, tensors, allow_unused=True)
    except RuntimeError as error:
        if "checkpoint" not in str(error):
            raise
        raise DeformscopeError(
            f"model {type(run.model).__name__}: computes layers again in the backward pass (gradient checkpointing), "
            "where they cannot be explained; switch it off (of transformers: model.gradient_checkpointing_disable())"
        ) from None
    pairs = zip(found, tensors, strict=True)
    return [(torch.zeros_like(tensor) if one is None else one).detach().cpu() for one, tensor in pairs]


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
