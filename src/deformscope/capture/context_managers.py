"""Capture the offsets of every deformable convolution and attention of any PyTorch model, without touching its code.

Calls are seen at operators (``torchvision::deform_conv2d``, ``grid_sample`` inside attention), at autograd Functions of
compiled kernels, and at deformscope's own operator, whichever module makes them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from ..errors import DeformscopeWarning, NoDeformableCall
from ..fields.field import Placement
from ..fields.fields import Fields
from ..ops.observe import observing
from .function_watch import watching_functions
from .operator_watch import watching
from .recorder import Recorder, placements_now

_recorders: ContextVar[tuple[Recorder, ...]] = ContextVar("recorders", default=())


@contextmanager
def placed(placements: Sequence[Placement]) -> Iterator[None]:
    """Tell :func:`capture` how the photos of the batch lie in the network's input, while the block runs on it.

    Example:
        >>> resized = torch.nn.functional.interpolate(images, scale_factor=2.0)     # two photos of 64 × 96 px, doubled
        >>> with ds.capture(model) as fields, placed([ds.Placement((64, 96), (2.0, 2.0))] * 2):
        ...     output = model(resized)
        >>> fields["layer4.conv"].pixels_per_cell()     # in px of the photos
        (4.0, 4.0)
    """
    token = placements_now.set(tuple(placements))
    recorders = [recorder for recorder in _recorders.get() if recorder.here]
    sizes = [tuple(round(size * scale) for size, scale in zip(p.size, p.scale, strict=True)) for p in placements]
    for recorder in recorders:
        recorder.begin(("placed", *dict.fromkeys(sizes)))
    try:
        yield
    except BaseException:
        for recorder in recorders:
            recorder.broke_off()
        raise
    finally:
        for recorder in recorders:
            recorder.end()
        placements_now.reset(token)


@contextmanager
def capture(model: nn.Module, *, broken: bool = False) -> Iterator[Fields]:
    """Record every deformable convolution and deformable attention that runs inside the block::

        with capture(model) as fields:
            model(images)

    Convolutions are in ``fields`` (torchvision's operator and deformscope's own, compiled ones such as mmcv's and
    DCNv3's, DAT and others), attention in ``fields.attention``; docs/samplers.md says which, and how each was verified.
    What is seen and follows no known convention is named in a DeformscopeWarning. Works under grad, no_grad and
    inference_mode, for any float type (offsets are kept as float32 or float64), on any device. Neither the model's
    mode nor any seed is touched, and no hook is left behind. The fields carry the photos' placements where the model is
    a deformscope detector or resizes with torchvision's ``GeneralizedRCNNTransform``.

    Cells have their places in the input of the model's call; where only parts of the model are called, in that of the
    first. The first pass of a kind (model, its modules' modes, shapes) is traced through all its operators, later ones
    are recognized, which costs next to nothing. A part that is computed again during the backward pass (gradient
    checkpointing) is recorded once. Inside the block ``torch.compile``'d code runs eagerly.

    With ``broken``, offsets that are NaN or infinite, on which torchvision's operator crashes the process, reach it as
    far beyond the map instead; the fields have them as they were.

    Raises NoDeformableCall at the end of a block in which nothing of this kind ran.

    Example:
        >>> with ds.capture(model) as fields:
        ...     output = model(images)
        >>> fields
        Fields:
          OffsetField('layer4.conv': 2 images, 1 group, kernel 3×3, stride 1×1, 8×12 cells of 8 px)
    """
    recorder = Recorder(model, broken)
    token = _recorders.set((*_recorders.get(), recorder))
    try:
        with (
            observing(recorder.own_call, recorder.looking_away),
            watching(recorder, recorder.watched),
            watching_functions(recorder.run_function),
            _eager(model),
        ):
            recorder.open()
            yield recorder.fields
    finally:
        recorder.close()
        _recorders.reset(token)
    unread = "; ".join(f"{name}: {why}" for name, why in recorder.unread.items())
    if not recorder.fields and not recorder.fields.attention:
        also = f". Seen, but not understood: {unread}" if unread else ""
        if recorder.samplers:
            also += f". grid_sample ran {recorder.samplers}×, in no module that is known to learn where it samples"
        raise NoDeformableCall(f"{_nothing_seen(model, recorder.ran)}{also}")
    if recorder.taken_apart and recorder.fields:
        message = (
            "a dispatch mode that was entered inside the block, such as FlopCounterMode, took resizes apart: the "
            "places of cells behind them are rough; enter it before capture"
        )
        warnings.warn(message, DeformscopeWarning, stacklevel=3)
    if unread:
        message = f"seen, but not understood and therefore not in the fields: {unread}"
        warnings.warn(message, DeformscopeWarning, stacklevel=3)


def _eager(model: nn.Module) -> AbstractContextManager[Any]:
    """Compiled code runs as if it were not, since nothing inside of it can be seen."""
    # Without the compiler's module nothing can have been compiled, and loading it takes seconds.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance = getattr(torch.compiler, "set_stance", None)
    return _uncompiled(model) if stance is None else stance("force_eager")


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """As ``set_stance("force_eager")``, for torch 2.4 and 2.5: the model's compiled modules call what was compiled."""
    kept: list[tuple[dict[str, Any], str, Any]] = []
    for module in model.modules():
        own, inner = vars(module), dict(module._modules.items()).get("_orig_mod")  # a scripted module's are no dict
        if inner is not None and "forward" in own:
            kept.append((own, "forward", own["forward"]))
            own["forward"] = inner.__call__
        if own.get("_compiled_call_impl") is not None:  # by module.compile()
            kept.append((own, "_compiled_call_impl", own["_compiled_call_impl"]))
            own["_compiled_call_impl"] = None
    try:
        yield
    finally:
        for own, name, value in kept:
            own[name] = value


def _nothing_seen(model: nn.Module, ran: bool) -> str:
    name, kinds = type(model).__name__, {type(module).__name__ for module in model.modules()}
    plain = [module for module in model.modules() if getattr(module, "offset_mode", None) == "none"]
    if "OptimizedModule" in kinds and not ran:
        return (
            f"{name}: no deformable convolution was seen; inside a torch.compile'd region nothing can be: capture the "
            "module that was compiled (`compiled._orig_mod`)"
        )
    if ran and plain:
        return (
            f"{name}: no deformable convolution was called inside the block, since with offset_mode='none' the model's "
            f"{len(plain)} deformable layers run as plain convolutions; set_offset_mode(model, 'full') of "
            "deformscope.detectors.deform gives them their offsets back"
        )
    return (
        f"{name}: no deformable convolution was called inside the block"
        f"{', in which the model ran' if ran else ', and the model did not run in it'}; expected at least one call of "
        "torchvision.ops.deform_conv2d, deformscope.ops.deform_conv2d, deformable attention or another sampler of "
        "docs/samplers.md. Offsets of other operators go in through OffsetField.from_tensor"
    )
