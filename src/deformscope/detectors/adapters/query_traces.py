"""Which object query of a detection transformer made a detection, and what it gave, differentiable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...errors import DeformscopeError
from ..detector import Detection

NEAR = 1e-5
"""Boxes of a detection and of a query that differ by no more, relative to the photo, are the same."""
SAME = 1e-3
"""Greatest difference of a detection from what its query gave, of the score and of the box relative to the photo."""


def with_query(found: Mapping[str, Any], output: Any, image: int, size: tuple[int, int], classes: int) -> Detection:
    """Detections of an image processor with the ``query`` of each and its traces, ``logits`` and ``unclipped``.

    The processors don't tell the query, but boxes and scores do. Query and traces are left out where the network's
    output has no ``pred_boxes`` and ``logits``, the traces also where they don't give the detections' scores and boxes.
    ``size`` is the photo's (h, w), ``classes`` the number of classes without one for nothing.
    """
    detection = {key: found[key].detach() for key in ("boxes", "labels", "scores")}
    boxes, logits = output.get("pred_boxes"), output.get("logits")
    if boxes is None or logits is None:
        return detection
    sides = _corners(boxes[image], size)
    detection["query"] = query = _nearest(detection["boxes"], detection["labels"], sides, logits[image], size)
    odds = _log_odds(logits[image][query], detection["labels"], classes)
    apart = (sides[query] - detection["boxes"].to(sides)).abs() / _scale(sides, size)
    same = bool((apart <= SAME).all()) and bool(((odds.sigmoid() - detection["scores"]).abs() <= SAME).all())
    return detection | ({"logits": odds, "unclipped": sides[query]} if same else {})


def again(found: Detection, output: Any, size: tuple[int, int], classes: int) -> Detection:
    """``scores``, ``query`` and traces of the detections ``found`` in another output, for one photo.

    The query is the one whose box is nearest: where queries are chosen by rank, their numbers change with the photo.
    """
    boxes, logits = output.get("pred_boxes"), output.get("logits")
    if boxes is None or logits is None:
        raise DeformscopeError("detection: cannot be predicted again: the network gives no pred_boxes and logits")
    sides = _corners(boxes[0], size)
    query = _nearest(found.get("unclipped", found["boxes"]), found["labels"], sides, logits[0], size)
    odds = _log_odds(logits[0][query], found["labels"], classes)
    return {"scores": odds.sigmoid(), "query": query, "logits": odds, "unclipped": sides[query]}


def _nearest(
    wanted: Float[Tensor, "d 4"],
    labels: Int[Tensor, " d"],
    sides: Float[Tensor, "q 4"],
    logits: Float[Tensor, "q c"],
    size: tuple[int, int],
) -> Int[Tensor, " d"]:
    """The query with each box. Several may have one, and then the detection's score is the best one's of its class."""
    apart = ((wanted.to(sides)[:, None] - sides) / _scale(sides, size)).abs().amax(dim=2)  # [d q]
    same = apart <= apart.min(dim=1, keepdim=True).values + NEAR
    of_class = logits.T[labels.clamp(max=logits.shape[-1] - 1)]  # [d q]
    return of_class.masked_fill(~same, -torch.inf).argmax(dim=1)


def _log_odds(logits: Float[Tensor, "d c"], labels: Int[Tensor, " d"], classes: int) -> Float[Tensor, " d"]:
    """Of each row's class. With a logit for nothing, scores are a softmax's, and otherwise sigmoids."""
    chosen = labels.clamp(max=logits.shape[-1] - 1)[:, None]
    of_class = logits.gather(1, chosen)[:, 0]
    if logits.shape[-1] <= classes:
        return of_class
    return of_class - logits.scatter(1, chosen, -torch.inf).logsumexp(dim=1)


def _corners(boxes: Float[Tensor, "q 4"], size: tuple[int, int]) -> Float[Tensor, "q 4"]:
    """Centres and sizes (x, y, w, h), relative, to xyxy in photo px."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([centre - half, centre + half], dim=1) * _scale(boxes, size)


def _scale(like: Tensor, size: tuple[int, int]) -> Float[Tensor, " 4"]:
    return like.new_tensor([size[1], size[0]] * 2)
