"""Capture the offsets of every deformable convolution and attention of any PyTorch model, without touching its code."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..errors import DeformscopeError, DeformscopeWarning, NoDeformableCall
from ..fields.fields import Fields
from ..fields.places import Pair, Placement
from ..photo import Photo, read
from . import watch
from .recorder import Recorder


class _Local(threading.local):
    photos: tuple[Placement | Pair, ...] = ()
    """Of the batch at hand: placements, or sizes of photos."""
    fit: str | None = None


_local = _Local()


def _placing(n: int, network: Pair) -> tuple[Placement, ...]:
    if len(_local.photos) != n:
        return ()
    photos = _local.photos
    return tuple(one if isinstance(one, Placement) else Placement.fitted(one, network, _local.fit) for one in photos)


@contextmanager
def placed(photos: Photo | Sequence[Placement | Photo], *, fit: str | None = None) -> Iterator[None]:
    """Tell :func:`capture` of which photos the network's input is made, while the block runs on it.

    ``photos``: one for each image of the batch, or the only one: a :class:`Placement`, or a photo in any form that
    figures take. ``fit`` says how photos became the input: ``"stretch"``, ``"crop"``, ``"crop:256"``, ``"pad"`` or
    ``"pad-centre"`` (:meth:`Placement.fitted`); it is not needed where the aspect ratio is the same.

    Raises DeformscopeError, when the model runs, where a photo of this size does not become the input.

    Example:
        >>> resized = torch.nn.functional.interpolate(images, scale_factor=2.0)     # two photos of 64 × 96 px, doubled
        >>> with ds.capture(model) as fields, ds.placed([ds.Placement((64, 96), (2.0, 2.0))] * 2):
        ...     output = model(resized)
        >>> fields["layer4.conv"].pixels_per_cell()     # in px of the photos
        (4.0, 4.0)
    """
    several: Sequence[Placement | Photo] = photos if isinstance(photos, (list, tuple)) else [photos]  # type: ignore[list-item]
    before = _local.photos, _local.fit
    _local.photos = tuple(one if isinstance(one, Placement) else read(one).shape[:2] for one in several)
    _local.fit = fit
    try:
        yield
    finally:
        _local.photos, _local.fit = before


@contextmanager
def capture(model: nn.Module, *, broken: bool = False, places: bool = True) -> Iterator[Fields]:
    """Record every deformable convolution and deformable attention that runs inside the block::

        with capture(model) as fields:
            model(images)

    Convolutions are in ``fields`` (torchvision's operator and deformscope's own, compiled ones such as mmcv's and
    DCNv3's, DAT and others), attention in ``fields.attention``; docs/samplers.md lists them. Samplers that follow no
    known convention are named in a DeformscopeWarning. Works under grad, no_grad and inference_mode, for any float type
    (offsets are kept as float32 or float64), on any device. Nothing is changed: not the model's mode, no seed, no hook.

    Cells have their places in the tensor that the model is called with, followed through every operator: exact, or
    unknown (``field.cells`` is None, ``field.unplaced`` says why). Where only parts of the model are called, it is the
    tensor that the first is called with. It is kept as ``field.image``, of the block's last batch. How photos lie in it
    is known for deformscope's detectors and torchvision's ``GeneralizedRCNNTransform``; :func:`placed` tells of others.
    With ``places=False`` none of this is followed, which is cheaper.

    A part that is computed again during the backward pass (gradient checkpointing) is recorded once. Inside the block
    ``torch.compile``'d code runs eagerly. With ``broken``, offsets that are NaN or infinite, on which torchvision's
    operator crashes the process, reach it as far beyond the map instead; the fields have them as they were.

    Raises NoDeformableCall at the end of a block in which nothing of this kind ran.

    Example:
        >>> with ds.capture(model) as fields:
        ...     output = model(images)
        >>> fields
        Fields:
          OffsetField('layer4.conv': 2 images, 1 group, kernel 3×3, 8×12 cells, stride 8 network px)
    """
    if not isinstance(model, nn.Module):
        raise DeformscopeError(f"model of type {type(model).__name__}: expected a torch.nn.Module")
    recorder = Recorder(model, _placing, broken=broken, places=places)
    recorder.watch = watch.begin(recorder)
    try:
        with _eager():
            yield recorder.fields
    finally:
        watch.end(recorder.watch, recorder)
        recorder.watch = None
    unread = "; ".join(f"{name}: {why}" for name, why in recorder.unread.items())
    if not recorder.fields and not recorder.fields.attention:
        also = f". Seen, but not understood: {unread}" if unread else ""
        if recorder.samplers and not unread:
            also += f". grid_sample ran {recorder.samplers}×, in no module that is known to learn where it samples"
        raise NoDeformableCall(f"{_nothing_seen(model, recorder.ran)}{also}")
    if unread:
        message = f"samplers that were seen, but not understood, and are not in the fields: {unread}"
        warnings.warn(message, DeformscopeWarning, stacklevel=3)


def _eager() -> AbstractContextManager[Any]:
    """Compiled code runs as if it were not, since nothing inside of it can be seen."""
    # Without the compiler's module nothing can have been compiled, and loading it takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _nothing_seen(model: nn.Module, ran: bool) -> str:
    detector = getattr(model, "name", None)  # which its user chose by this name, or made
    name = detector if isinstance(detector, str) else type(model).__name__
    kinds = {type(module).__name__ for module in model.modules()}
    plain = sum(getattr(module, "offset_mode", None) == "none" for module in model.modules())
    if "OptimizedModule" in kinds and not ran:
        return (
            f"{name}: no deformable convolution was seen; inside a torch.compile'd region nothing can be: capture the "
            "module that was compiled (`compiled._orig_mod`)"
        )
    why = "; expected a call of torchvision.ops.deform_conv2d, deformscope.ops.deform_conv2d, deformable attention or "
    why += "another sampler of docs/samplers.md. For other operators use OffsetField.from_tensor"
    if ran and plain:
        why = (
            f", since with offset_mode='none' the model's {plain} deformable layers run as plain convolutions; "
            "set_offset_mode(model, 'full') of deformscope.detectors.deform gives them their offsets back"
        )
    if isinstance(detector, str) and ran and not plain:
        return f"{name}: no deformable convolution or attention in it; expected a sampler of docs/samplers.md"
    how = ", in which the model ran" if ran else ", and the model did not run in it"
    return f"{name}: no deformable convolution was called inside the block{'' if ran and plain else how}{why}"
