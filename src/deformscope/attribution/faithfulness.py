"""Is an attribution true? Sampling points are switched off in its order, and the score of the same prediction is read.

Deletion and insertion (Petsiuk et al., BMVC 2018), with sampling points for pixels: a point is off when its modulation
is 0, so that nothing else of the network changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..detectors.detector import Detector
from ..errors import DeformscopeError
from ..ops.intercept import Inputs, intercepting
from ..recording.capture import placed
from .explanation import Attribution, Explanation

Array = np.ndarray

ORDERS = ("attribution", "nearest", "random")
"""What counts first: what adds most, what lies nearest to the box's centre, anything."""
KINDS = ("deletion", "insertion")
SHARES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)
"""Shares of the candidate points that are switched."""
SHUFFLES = 2
"""Random orders, whose curves are averaged."""


@dataclass(frozen=True)
class Curves:
    """What one layer's points do to one prediction, by kind and order, ``shares`` of the points switched.

    Deletion has so many of the first points off, insertion only so many of the first on.
    """

    layer: str
    candidates: int
    shares: Float[Array, " s"]
    score: Mapping[str, Mapping[str, Float[Array, " s"]]]
    """``score["deletion"]["nearest"]``: the probability of the same class in the same prediction."""
    iou: Mapping[str, Mapping[str, Float[Array, " s"]]]
    """The IoU of the same prediction's box with its box as it was."""

    def areas(self) -> dict[str, dict[str, dict[str, float]]]:
        """Areas under the curves over the shares; faithful is small in deletion, large in insertion."""
        return {
            name: {
                kind: {order: _area(self.shares, curve) for order, curve in orders.items()}
                for kind, orders in curves.items()
            }
            for name, curves in (("score", self.score), ("iou", self.iou))
        }


def faithfulness(
    detector: Detector,
    explained: Explanation,
    layer: str | None = None,
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> Curves:
    """Deletion and insertion curves of one layer (default: the last on which y depends) of one explanation.

    The points that are switched are the :func:`candidates`. ``explained`` is of a detector's own detection.
    Raises DeformscopeError for an explanation of anything else.

    Example:
        >>> why = deformscope.explain(detector, "cat.png")
        >>> faithfulness(detector, why).areas()["score"]["deletion"]  # {'attribution': …, 'nearest': …, 'random': …}
    """
    if explained.photo is None or explained.box is None or not {"index", "region"} & set(explained.detection):
        raise DeformscopeError("explained: expected the explanation of a detection that a deformscope detector made")
    chosen = explained.layer(layer)
    if chosen.call is None:
        raise DeformscopeError(
            f"layer={chosen.field.name!r}: its module calls no deformable operator, so its points cannot be switched "
            "off; expected a layer that calls torchvision's or deformscope's operator"
        )
    points = candidates(explained, chosen.field.name).flatten().nonzero()[:, 0]
    values = chosen.points.flatten()[points]
    x0, y0, x1, y1 = explained.box
    centre = torch.tensor([(y0 + y1) / 2, (x0 + x1) / 2], dtype=chosen.points.dtype)
    distance = (chosen.places().reshape(-1, 2)[points] - centre).norm(dim=-1)
    random = torch.Generator().manual_seed(seed)
    orders = {
        "attribution": [values.argsort(descending=True)],
        "nearest": [distance.argsort()],
        "random": [torch.randperm(len(points), generator=random) for _ in range(SHUFFLES)],
    }
    again = _Again(detector, explained, chosen)
    nothing, everything = again.read(points[:0]), again.read(points)
    counts = [round(share * len(points)) for share in shares]
    score: dict[str, dict[str, Array]] = {kind: {} for kind in KINDS}
    iou: dict[str, dict[str, Array]] = {kind: {} for kind in KINDS}
    for name, several in orders.items():
        for kind in KINDS:
            runs = []
            for order in several:
                ranked, run = points[order], []
                for count in counts:
                    off = ranked[:count] if kind == "deletion" else ranked[count:]
                    ends = {0: nothing, len(points): everything}
                    probability, box = ends[len(off)] if len(off) in ends else again.read(off)
                    run.append((probability, _iou(box, nothing[1])))
                runs.append(run)
            score[kind][name], iou[kind][name] = np.array(runs).mean(axis=0).T
    return Curves(chosen.field.name, len(points), np.array(shares, dtype=float), score, iou)


def candidates(explained: Explanation, layer: str) -> Bool[Tensor, "g k h w"]:
    """The sampling points of a layer through which a detection's evidence can come.

    Of a dense detector: in the last layer on which it depends, those of the predicting cell; in a layer below it, those
    of the cells that these read, and so on. Of other detectors, whose second stage looks into a region: those inside
    the box.
    """
    wanted = explained.layer(layer)
    if "index" not in explained.detection:
        assert explained.box is not None
        x0, y0, x1, y1 = explained.box
        y, x = wanted.places().unbind(-1)
        return (y >= y0) & (y <= y1) & (x >= x0) & (x <= x1)
    upper = explained.layer()
    cells = torch.tensor([upper.strongest_cell()])
    while upper.field.name != layer:
        below = upper.field.below
        if not below or below not in explained.layers:
            raise DeformscopeError(
                f"layer={layer!r}: not below {explained.layer().field.name!r}, which made the detection"
            )
        network = upper.field.input_cells.to_network(upper.field.sampling_points())[0][:, :, cells[:, 0], cells[:, 1]]
        upper = explained.layers[below]
        cells = _read(upper, network.reshape(-1, 2))
    chosen = torch.zeros(wanted.points.shape, dtype=torch.bool)
    chosen[:, :, cells[:, 0], cells[:, 1]] = True
    return chosen


def _read(layer: Attribution, network: Float[Tensor, "m 2"]) -> Int[Tensor, "_ 2"]:
    """The output cells (y, x) of a layer that are read, bilinearly, at places in network px."""
    size = torch.tensor(layer.points.shape[2:])
    place = layer.field.output_cells.to_cells(network)
    corners = [place.floor() + torch.tensor([y, x]) for y in (0, 1) for x in (0, 1)]
    weights = [(1 - (place - corner).abs()).prod(dim=-1) for corner in corners]
    cells = torch.cat([corner[weight > 1e-6] for corner, weight in zip(corners, weights, strict=True)])
    inside = ((cells >= 0) & (cells < size)).all(dim=-1)
    return cells[inside].long().unique(dim=0)


class _Again:
    """The same prediction of the same photo, with some of a layer's points switched off."""

    def __init__(self, detector: Detector, explained: Explanation, layer: Attribution) -> None:
        assert explained.photo is not None
        self._detector, self._layer = detector, layer
        batch, self._placements = detector.prepare([explained.photo])
        device = next(detector.parameters()).device
        self._batch = batch.to(device)
        self._found = {key: value.to(device) for key, value in explained.detection.items()}

    def read(self, off: Int[Tensor, " _"]) -> tuple[float, Float[Array, " 4"]]:
        """The class's probability, and the box (xyxy, photo px, unclipped)."""
        on = torch.ones(self._layer.points.numel())
        on[off] = 0

        def change(number: int, call: Inputs) -> Inputs:
            if number != self._layer.call:
                return call
            like = call.offset if call.mask is None else call.mask
            part = on.to(like).reshape(1, -1, *like.shape[-2:])
            return call._replace(mask=part if call.mask is None else call.mask * part)

        with torch.inference_mode(), placed(self._placements), intercepting(change):
            traces = self._detector.repredict(self._batch, self._placements[0], self._found)
        return float(traces["logits"][0].sigmoid()), traces["unclipped"][0].cpu().double().numpy()


def _iou(a: Array, b: Array) -> float:
    top, bottom = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    common = (bottom - top).clip(0).prod()
    both = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common
    return float(common / max(both, 1e-9))


def _area(shares: Array, curve: Array) -> float:
    """By the trapezoidal rule, over the width of the shares."""
    return float(((curve[1:] + curve[:-1]) / 2 * np.diff(shares)).sum() / (shares[-1] - shares[0]))
