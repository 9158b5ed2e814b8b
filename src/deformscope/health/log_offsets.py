"""Log offsets during training: statistics as curves, and the paper's figures, to TensorBoard or another logger."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from ..errors import DeformscopeError
from ..fields.fields import Fields
from ..photo import Photo, read
from .diagnose import Diagnosis, diagnose
from .unchanged import evaluating


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
    """Log the offsets of a model on ``photos``: curves per layer, and the three figures of the first photo.

    ``logger`` is a TensorBoard ``SummaryWriter`` or a Lightning logger; one that accepts no images gets only the
    curves. ``model`` is one of deformscope's detectors, or any module with a ``forward`` that runs it on one photo. The
    model is in eval mode meanwhile, so that these photos do not change statistics of the training; afterwards every
    module has its former mode. Curves: ``median`` and ``largest`` offset (cells), share ``beyond`` the map, mean
    ``modulation``, and the numbers of ``broken`` and ``suspect`` layers. Returns the diagnosis.

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
    for verdict in ("broken", "suspect"):
        values[f"{prefix}/{verdict}"] = float(sum(layer.verdict == verdict for layer in diagnosis.layers))
    return values


def _drawn(fields: Fields, photo: np.ndarray, hidden: set[str]) -> Iterator[tuple[str, Any]]:
    """Figures 1-3 of the last layer of each reduction, except for the ``hidden`` ones."""
    from ..draw import figure1, figure2, figure3

    last = {
        field.reduction: field for name, field in fields.items() if field.offset.shape[0] == 1 and name not in hidden
    }
    if not last:
        return
    for field in last.values():
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
