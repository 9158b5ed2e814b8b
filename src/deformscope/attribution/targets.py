"""What is explained: one number of a detection, or of any output, that has a way back to the photo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..detectors.detector import Detection
from ..errors import DeformscopeError

SIDES = ("left", "top", "right", "bottom")
OUTPUTS = ("score", "iou", *SIDES)
"""The class's log-odds, the IoU branch's logit, and the box's sides before clipping, photo px."""


def name_of(of: str | Callable[[Any], Tensor]) -> str:
    """What is explained, for titles: a function's name, ``output`` for one without a name."""
    name = of if isinstance(of, str) else getattr(of, "__name__", "<lambda>")
    return "output" if name == "<lambda>" else name


def of_detection(traces: Detection, row: int, of: str) -> Tensor:
    """The output ``of`` of one detection, from its traces (:data:`deformscope.detectors.detector.TRACES`)."""
    if of in SIDES and "unclipped" in traces:
        return traces["unclipped"][row, SIDES.index(of)]
    if "logits" not in traces:
        raise DeformscopeError(
            f"of={of!r}: this detector doesn't tell what gave its detections; deformscope.explain(network, batch, "
            "of=function) takes any network"
        )
    key = {"score": "logits", "iou": "iou_logits"}.get(of)
    if key is None or key not in traces:
        known = [name for name in OUTPUTS if name != "iou" or "iou_logits" in traces]
        raise DeformscopeError(
            f"of={of!r}: expected one of {', '.join(map(repr, known))}, or a function of the detections"
        )
    return traces[key][row]


def row_of(
    found: Detection, detection: int, at: tuple[float, float] | None, size: tuple[int, int], min_score: float
) -> int:
    """The row of the chosen detection: number ``detection``, or the best whose box holds ``at`` (y, x), photo px."""
    boxes = found["boxes"]
    if not len(boxes):
        raise DeformscopeError(f"min_score={min_score:g}: nothing on this photo scores so high; lower it")
    if at is None:
        if not 0 <= detection < len(boxes):
            raise DeformscopeError(
                f"detection={detection}: expected 0 to {len(boxes) - 1}, the detections on this photo, best first"
            )
        return detection
    y, x = at
    if not (0 <= y <= size[0] and 0 <= x <= size[1]):
        raise DeformscopeError(f"at=(y={y:g}, x={x:g}): outside the photo, which is {size[0]} high and {size[1]} wide")
    inside = (boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3])
    if not bool(inside.any()):
        raise DeformscopeError(
            f"at=(y={y:g}, x={x:g}): in none of the {len(boxes)} detected boxes; give another place, or a number"
        )
    return int(inside.nonzero()[0])


def checked(value: Any, of: str) -> Tensor:
    """``value`` as a scalar from which gradients lead back; DeformscopeError if it is none."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise DeformscopeError(f"of={of}: gave {what}; expected one number, a tensor of one element")
    if not value.requires_grad:
        raise DeformscopeError(
            f"of={of}: the output has no gradient path back to the photo; it was computed in inference_mode or "
            "no_grad, or detached; let the model run with gradients"
        )
    return value.reshape(())
