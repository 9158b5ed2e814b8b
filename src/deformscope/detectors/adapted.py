"""Any network as a detector: with a function that makes its input of photos, and one that reads its output.

From the command line it is ``python:package.module:factory``, which runs the user's code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import box_iou

from ..errors import DeformscopeError
from ..fields.places import Placement
from .detector import Detection, Detector
from .preparation import padded

if TYPE_CHECKING:
    from collections.abc import Iterator

Prepared = Tensor | tuple[Tensor, Sequence[Placement]]
Prepare = Callable[[list[np.ndarray]], Prepared]
"""Photos, RGB uint8 ``[h w 3]``, to the network's input ``[n …]``, and how they lie in it, unless ``fit`` says so."""
Decode = Callable[[Any, Tensor], Sequence[dict[str, Any]]]
"""The network's output and its input to one dictionary a photo: ``boxes`` [d 4] xyxy in px of the network's input,
``scores`` [d], ``labels`` [d] (0 without), and ``query`` [d], the object query that made each, if there is one."""


SATURATED = 1e-7
"""Scores nearer to 0 or 1 count as this near: their log-odds would be infinite."""


class AdaptedDetector(Detector):
    """A network that detects by functions of its own library, or of its user; made by :func:`adapt`.

    It cannot be trained or saved here, and has the photos' sizes that its ``prepare`` chooses.
    """

    def __init__(
        self,
        net: nn.Module,
        prepare: Callable[[list[np.ndarray], str | None], tuple[Tensor, list[Placement]]],
        run: Callable[[nn.Module, Tensor, Sequence[Placement], float], list[Detection]],
        class_names: Sequence[str],
        name: str,
        repredict: Callable[[nn.Module, Tensor, Placement, Detection], Detection] | None = None,
        fit: str | None = None,
    ) -> None:
        """``prepare`` gets photos and ``fit``. ``run`` detects with ``net`` on a batch; its result is in photo px and
        has scores above the last argument.

        ``repredict`` is :meth:`repredict`; without it the detector's detections cannot be explained.
        """
        super().__init__()
        self.net, self._prepare, self._run, self._repredict = net, prepare, run, repredict
        self.class_names, self.name, self.fit = tuple(class_names), name, fit
        self.eval()

    def prepare(self, photos: Sequence[np.ndarray], shorter_side: int | None = None) -> tuple[Tensor, list[Placement]]:
        if shorter_side is not None:
            raise DeformscopeError(f"shorter_side={shorter_side}: {self.name} chooses the size itself; leave it out")
        copies = [photo.copy() for photo in photos]  # into which others' code may write
        return self._prepare(copies, self.fit)

    def detect(
        self,
        batch: Tensor,
        placements: Sequence[Placement],
        *,
        min_score: float = 0.05,
        nms: float = 0.5,
        max_detections: int = 100,
    ) -> list[Detection]:
        """As of every detector, but ``nms`` is left to the network's own library."""
        found = []
        for one in self._run(self.net, batch, placements, min_score):
            best = one["scores"].argsort(descending=True, stable=True)
            best = best[one["scores"][best] > min_score][:max_detections]
            found.append({key: value[best] for key, value in one.items()})
        return found

    def check_explainable(self) -> None:
        if self._repredict is None:
            raise DeformscopeError(
                f"{self.name}: a detector of another library cannot be explained by a detection's number: it has no "
                "decode, which makes its detections; deformscope.explain(network, batch, of=function) takes any network"
            )

    def repredict(self, batch: Tensor, placement: Placement, found: Detection) -> Detection:
        self.check_explainable()
        assert self._repredict is not None
        return self._repredict(self.net, batch, placement, found)


def adapt(
    network: nn.Module,
    *,
    prepare: Prepare | None = None,
    decode: Decode | None = None,
    class_names: Sequence[str] = (),
    name: str = "",
    fit: str | None = None,
) -> AdaptedDetector:
    """Make a detector of any network, for :func:`deformscope.analyse`, ``deformscope figures`` and the like.

    ``prepare`` makes the network's input of a list of photos (RGB uint8 ``[h w 3]``): a batch whose first axis counts
    them. ``fit`` says how it makes inputs of another shape than the photo's, as in :meth:`Placement.fitted`
    (``"stretch"``, ``"crop"``, ``"pad"``…); or ``prepare`` returns ``(batch, placements)``, one :class:`Placement` a
    photo. By default photos go in at their own size, as floats in 0..1, padded with zeros at the bottom and right.
    ``decode`` makes detections of the network's output and that batch: one dictionary a photo with ``boxes`` [d 4] xyxy
    in px of the network's input, ``scores`` [d], ``labels`` [d] (indices into ``class_names``) and, for detectors with
    object queries, ``query`` [d], the query that made each. Without it nothing is detected, and only offsets are seen.
    Where it computes with torch, gradients lead back through it, and detections can be explained: scores in 0..1 by
    their log-odds, and the sides of boxes.

    Raises DeformscopeError, when it runs, for a batch or detections that are not of this form.

    Example:
        >>> detector = ds.adapt(model, name="mine")
        >>> ds.analyse(detector, "photo.jpg").fields
        Fields:
          OffsetField('net.layer4.conv': 1 image, 1 group, kernel 3×3, 38×57 cells, stride 8 network px)
    """
    if not isinstance(network, nn.Module):
        raise DeformscopeError(f"network of type {type(network).__name__}: expected a torch.nn.Module")
    called = name or type(network).__name__

    def prepared(photos: list[np.ndarray], fit: str | None) -> tuple[Tensor, list[Placement]]:
        with _of_the_user(f"{called}: prepare"):
            return _placed(photos, (prepare or _as_they_are)(photos), fit)

    def run(net: nn.Module, batch: Tensor, placements: Sequence[Placement], least: float) -> list[Detection]:
        with _of_the_user(f"{called}: the network"):
            output = net(batch)
        if decode is None:
            return [_checked({}, place, batch) for place in placements]
        with _of_the_user(f"{called}: decode"):
            found = list(decode(output, batch))
            if len(found) != len(placements):
                raise DeformscopeError(f"{len(found)} results for {len(placements)} photos; expected one a photo")
            return [_checked(dict(one), place, batch) for one, place in zip(found, placements, strict=True)]

    def again(net: nn.Module, batch: Tensor, placement: Placement, found: Detection) -> Detection:
        with _of_the_user(f"{called}: decode"):
            return _found_again(found, run(net, batch, [placement], 0.0)[0], placement)

    return AdaptedDetector(network, prepared, run, class_names, called, None if decode is None else again, fit)


@contextmanager
def _of_the_user(what: str) -> Iterator[None]:
    """An error of others' code as one of ours, which says where it was."""
    try:
        yield
    except DeformscopeError as error:
        raise DeformscopeError(f"{what}: {error}") from error
    except Exception as error:
        raise DeformscopeError(f"{what} failed: {told(error)}") from error


def told(error: BaseException) -> str:
    """An error in one line, with the place in the user's code that raised it."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    inside = str(Path(__file__).parents[1])
    places = [one for one in extract_tb(error.__traceback__) if not one.filename.startswith((inside, "<frozen"))]
    return f"{text} ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else text


def _as_they_are(photos: list[np.ndarray]) -> Prepared:
    images = [torch.from_numpy(photo).permute(2, 0, 1).float() / 255 for photo in photos]
    return padded(images), [Placement((photo.shape[0], photo.shape[1])) for photo in photos]


def _placed(photos: list[np.ndarray], made: Any, fit: str | None) -> tuple[Tensor, list[Placement]]:
    batch, placements = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(batch, Tensor) or batch.ndim < 4 or len(batch) != len(photos):
        got = f"shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else f"type {type(batch).__name__}"
        raise DeformscopeError(f"a batch of {got} for {len(photos)} photos; expected a tensor [{len(photos)} … h w]")
    if placements is None:
        network = (batch.shape[-2], batch.shape[-1])
        placements = [Placement.fitted((photo.shape[0], photo.shape[1]), network, fit) for photo in photos]
    elif fit is not None:
        raise DeformscopeError(f"fit={fit!r}: it returns placements, which say how photos lie in its batch already")
    placements = list(placements)
    if len(placements) != len(photos) or not all(isinstance(one, Placement) for one in placements):
        raise DeformscopeError(f"placements: expected {len(photos)} of deformscope.Placement, one a photo")
    return batch, placements


def _checked(found: dict[str, Any], place: Placement, batch: Tensor) -> Detection:
    """A photo's detections in photo px, as tensors of the shapes that all rely on."""
    boxes = torch.as_tensor(found.get("boxes", batch.new_zeros(0, 4)), device=batch.device).float()
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DeformscopeError(f"boxes of shape {tuple(boxes.shape)}: expected [d 4], xyxy px of the network's input")
    count = len(boxes)
    missing = [key for key in ("scores",) if count and key not in found]
    unknown = [key for key in found if key not in ("boxes", "scores", "labels", "query")]
    if missing or unknown:
        raise DeformscopeError(f"keys {', '.join(found)}: expected boxes, scores and, optionally, labels and query")
    sides = place.boxes_to_photo(boxes)
    parts = {"boxes": _clipped(sides.detach(), place), "unclipped": sides}
    for key, kind in (("scores", torch.float32), ("labels", torch.int64), ("query", torch.int64)):
        if key == "query" and key not in found:
            continue
        value = torch.as_tensor(found.get(key, torch.zeros(count)), device=batch.device).to(kind)
        if tuple(value.shape) != (count,):
            raise DeformscopeError(f"{key} of shape {tuple(value.shape)}: expected [{count}], one a box")
        parts[key] = value.detach()
        if key == "scores" and bool(((value >= 0) & (value <= 1)).all()):
            parts["logits"] = value.logit(SATURATED)
    return parts


def _found_again(found: Detection, now: Detection, place: Placement) -> Detection:
    """The scores and traces of the detections ``found`` among those of another pass: of each the nearest box of its
    class or, if these two do not overlap by half, of any."""
    if not len(now["boxes"]):
        raise DeformscopeError("gave no detection where there was one before")
    before = found["unclipped"].to(now["boxes"])
    apart = (before[:, None] - now["unclipped"].detach()).abs().amax(dim=2)  # [d d']
    other = found["labels"].to(now["labels"])[:, None] != now["labels"]
    overlap = box_iou(_clipped(before, place), now["boxes"])
    row = torch.where(other | (overlap < 0.5), apart + 2 * max(place.size) + apart.amax(), apart).argmin(dim=1)
    return {key: value[row] for key, value in now.items() if key not in ("boxes", "labels")}


def _clipped(boxes: Float[Tensor, "d 4"], place: Placement) -> Float[Tensor, "d 4"]:
    """Boxes xyxy in photo px, cut off at the photo's border."""
    size = boxes.new_tensor([place.size[1], place.size[0]] * 2)
    return boxes.clamp(min=torch.zeros_like(size), max=size)


def load_factory(spec: str) -> Detector:
    """The detector that a factory makes: ``package.module:factory`` is imported and called without arguments.

    The module is looked for as Python does, and in the current folder. The factory returns a module, or what
    :func:`adapt` made of one with ``prepare`` and ``decode``. Raises DeformscopeError, with the reason in one
    line, when it cannot be imported, fails, or returns something else.
    """
    shown = f"detector='python:{spec}'"
    module, colon, factory = spec.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *factory.split("."))):
        raise DeformscopeError(f"{shown}: expected python:package.module:factory")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # at the end: nothing that is installed is hidden by a file of that name
    try:
        found = import_module(module)
        for part in factory.split("."):
            found = getattr(found, part)
        if not callable(found):
            raise TypeError(f"{factory} is of type {type(found).__name__}, not a function")
        made = found()
    except Exception as error:  # whatever the user's code raises
        raise DeformscopeError(f"{shown}: {told(error)}") from error
    if isinstance(made, Detector):
        return made.eval()
    if not isinstance(made, nn.Module):
        raise DeformscopeError(
            f"{shown}: returned {type(made).__name__}; expected a torch.nn.Module, or what deformscope.adapt made"
        )
    return adapt(made, name=factory)
