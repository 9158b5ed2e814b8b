"""Log offsets during training: statistics as curves, and the paper's figures, to TensorBoard or another logger."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from ..errors import DeformscopeError
from ..fields.attention import AttentionField
from ..fields.fields import Fields
from ..fields.moments import encoder_fields
from ..photo import Photo, read
from ..recording.unchanged import evaluating
from .attention_checks import moved
from .diagnose import Diagnosis, diagnose


def log_offsets(
    logger: Any,
    model: nn.Module,
    photos: Sequence[Photo],
    step: int,
    *,
    forward: Callable[[Any], Any] | None = None,
    figures: bool = True,
    prefix: str = "offsets",
) -> Diagnosis:
    """Log the offsets of a model on ``photos``: curves per layer, and the paper's figures of the first photo.

    ``logger`` is a TensorBoard ``SummaryWriter`` or a Lightning logger; one that accepts no images gets only the
    curves. ``model`` is one of deformscope's detectors, or any module with a ``forward`` that runs it on one photo. The
    model is in eval mode meanwhile, so that these photos do not change statistics of the training; afterwards every
    module has its former mode. Curves: ``median`` and ``largest`` offset (cells), share ``beyond`` the map, mean
    ``modulation``, and the numbers of ``broken`` and ``suspect`` layers; of attention also those of
    :func:`attention_curves`. Figures 1-3 are of deformable convolutions; without any, Figures 2 and 3 of an encoder's
    attention. Object queries have curves alone. Returns the diagnosis.

    Example:
        >>> found = log_offsets(writer, detector, ["photo.jpg"], step=0, figures=False)     # TensorBoard's writer
    """
    if not photos:
        raise DeformscopeError("photos=[]: expected at least one photo to watch")
    arrays = [read(photo) for photo in photos]
    with evaluating(model):
        diagnosis = diagnose(model, list(photos) if forward else arrays, forward)
        _log_curves(logger, curves(diagnosis, prefix), step)
        if figures:
            hidden = {finding.layer for finding in diagnosis.findings if finding.ailment == "non-finite"}
            for name, figure in _drawn(diagnosis.fields[0], arrays[0], hidden):
                _log_figure(logger, f"{prefix}/{name}", figure, step)
    return diagnosis


def curves(diagnosis: Diagnosis, prefix: str = "offsets") -> dict[str, float]:
    """A diagnosis as named numbers."""
    values: dict[str, float] = {}
    for layer in diagnosis.layers:
        for name in ("median", "largest", "beyond", "modulation"):
            value = getattr(layer, name)
            if value is not None and math.isfinite(value):
                values[f"{prefix}/{layer.layer}/{name}"] = value
    of_attention: dict[str, list[dict[str, float]]] = {}
    for fields in diagnosis.fields:
        for layer_name, field in fields.attention.items():
            if field.points.numel():
                of_attention.setdefault(layer_name, []).append(attention_curves(field))
    for layer_name, photos in of_attention.items():
        for name in photos[0]:
            mean = sum(photo[name] for photo in photos) / len(photos)
            if math.isfinite(mean):
                values[f"{prefix}/{layer_name}/{name}"] = mean
    for verdict in ("broken", "suspect"):
        values[f"{prefix}/{verdict}"] = float(sum(layer.verdict == verdict for layer in diagnosis.layers))
    return values


def attention_curves(field: AttentionField) -> dict[str, float]:
    """What training changes in a layer of attention, as named numbers.

    ``displacement``: root mean square of the points' displacements from their reference, by weight, in half boxes of
    object queries and else in cells of each point's map; ``heaviest``: the weight of a head's heaviest point, from 1
    over their number to 1; ``level0``, … : the share of the weight on each map. Without weights, points count alike.
    """
    weights = field.points.new_ones(field.points.shape[:4]) if field.weights is None else field.weights
    shares = weights / weights.sum(dim=3, keepdim=True).clamp(min=1e-12)
    squares = (moved(field).square().sum(dim=-1) * shares).sum(dim=3)
    found = {"displacement": squares.mean().sqrt().item(), "heaviest": shares.amax(dim=3).mean().item()}
    mass = field.level_mass().mean(dim=(0, 1, 2)).tolist()
    return found | {f"level{number}": share for number, share in enumerate(mass)}


def _drawn(fields: Fields, photo: np.ndarray, hidden: set[str]) -> Iterator[tuple[str, Any]]:
    """Figures 1-3 of the last layer of each reduction, except for the ``hidden`` ones; of attention, 2 and 3."""
    from ..draw import figure1, figure2, figure3

    own = [field for name, field in fields.items() if name not in hidden]
    seen = [one for name, one in fields.attention.items() if name not in hidden]
    levels = [] if own else [field for one in seen for field in encoder_fields(one)]
    last = {field.reduction: field for field in (own or levels) if field.offset.shape[0] == 1}
    if not last:
        return
    for field in last.values() if own else ():
        yield f"{field.name}/figure1", figure1(field, photo)
    yield "figure2", figure2(last.values(), photo)
    yield "figure3", figure3(last.values(), photo)


def _log_curves(logger: Any, values: dict[str, float], step: int) -> None:
    if hasattr(logger, "log_metrics"):
        logger.log_metrics(values, step)
    elif hasattr(logger, "add_scalar"):
        for name, value in values.items():
            logger.add_scalar(name, value, step)
    else:
        raise DeformscopeError(
            f"logger of type {type(logger).__name__}: expected a Lightning logger (log_metrics) or a TensorBoard "
            "SummaryWriter (add_scalar, add_figure)"
        )


def _log_figure(logger: Any, name: str, figure: Any, step: int) -> None:
    writer: Any = logger if hasattr(logger, "add_image") else getattr(logger, "experiment", None)
    if hasattr(writer, "add_image"):
        # Not add_figure, which needs pyplot's canvas and closes figures in its list.
        writer.add_image(name, _pixels(figure), step, dataformats="HWC")
    elif hasattr(logger, "log_image"):
        logger.log_image(name, [_pixels(figure)], step=step)


def _pixels(figure: Any) -> Any:
    """Render a matplotlib figure as RGB uint8 [h w 3]."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
