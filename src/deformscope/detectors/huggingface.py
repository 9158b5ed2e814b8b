"""Detectors of Hugging Face's transformers with their image processors, from a folder or by name.

Their image processors do not say which object query made a detection, but boxes and scores do.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import DeformscopeError
from ..fields.places import Placement
from .adapted import AdaptedDetector, told
from .detector import Detection, Source
from .preparation import padded

SECONDS = 10.0
"""The hub has so long to answer."""
NEAR = 1e-5
"""Boxes of a detection and of a query that differ by no more, relative to the photo, are the same."""
SAME = 1e-3
"""Greatest difference of a detection from what its query gave, of the score and of the box relative to the photo."""


def load(source: str) -> AdaptedDetector:
    """Load an object detector of transformers, in eval mode: ``source`` is a folder of ``save_pretrained``, or a name
    on the Hugging Face hub, from which it is downloaded once.

    The model comes with its image processor; the folder holds both. No code of the folder or the hub is run. A local
    folder needs no network, and neither does what has been downloaded before. Raises DeformscopeError without
    transformers, for a name that is not there, and for what is no detector.
    """
    folder = Path(source).expanduser()
    local = folder.is_dir()
    if not source or (not local and (source.startswith((".", "/", "~")) or source.count("/") > 1)):
        raise DeformscopeError(f"detector='hf:{source}': no such folder; expected one of save_pretrained, or a name")
    if find_spec("transformers") is None:
        raise DeformscopeError("transformers is not installed; get it with: pip install 'deformscope[transformers]'")
    place = str(folder) if local else _on_the_hub(source)
    import transformers  # which takes seconds: after what may fail

    here = local or place != source
    where: dict[str, Any] = {"local_files_only": here, "trust_remote_code": False}
    try:
        with _quiet(here):
            processor = transformers.AutoImageProcessor.from_pretrained(place, **where)
            model = transformers.AutoModelForObjectDetection.from_pretrained(place, **where)
    except Exception as error:  # of many kinds: missing files, no network, other tasks' models, damaged weights
        raise DeformscopeError(
            f"detector='hf:{source}': not loaded ({told(error)}); expected an object detector of transformers with its "
            "image processor"
        ) from None
    detector = of_transformers(model, processor, name=folder.resolve().name if local else source)
    weights = folder / "model.safetensors"
    if local and weights.is_file():
        detector.source = Source(weights)
    return detector


def _on_the_hub(name: str) -> str:
    """The name of a model on the Hugging Face hub or, where the hub cannot be reached, the folder of its download.

    One short question to the hub: transformers asks it for many files, several times each, for minutes where it cannot
    be reached. Raises DeformscopeError for a name that is not there.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

    shown, config = f"detector='hf:{name}'", "config.json"
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(name, config), timeout=SECONDS)
    except HFValidationError:
        raise DeformscopeError(f"{shown}: no such folder, and no name of the Hugging Face hub (OWNER/MODEL)") from None
    except RepositoryNotFoundError:
        raise DeformscopeError(
            f"{shown}: no such folder, and no such model on the Hugging Face hub, or one that needs a login there"
        ) from None
    except EntryNotFoundError:
        raise DeformscopeError(f"{shown}: has no {config}; expected an object detector of transformers") from None
    except Exception as error:  # of the network's library, which changes with the hub's versions
        kept = hub.try_to_load_from_cache(name, config)
        if not isinstance(kept, str):
            raise DeformscopeError(
                f"{shown}: no such folder, not downloaded before, and the Hugging Face hub cannot be reached "
                f"({type(error).__name__}: {' '.join(str(error).split())[:120]})"
            ) from None
        return str(Path(kept).parent)
    return name


@contextmanager
def _quiet(on: bool) -> Iterator[None]:
    """Without a progress bar where nothing is downloaded, and without the hub's own words on failures."""
    import logging as standard

    from transformers.utils import logging

    hub = standard.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(standard.CRITICAL)

    shown = on and logging.is_progress_bar_enabled()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        hub.setLevel(level)
        if shown:
            logging.enable_progress_bar()


def of_transformers(model: nn.Module, processor: Any, name: str = "") -> AdaptedDetector:
    """A model of transformers with ``post_process_object_detection`` in its ``processor`` as a detector.

    Detections carry ``query``, the object query that made each, and can be explained: its class's log-odds and its box.
    Raises DeformscopeError for another processor.

    Example:
        >>> detector = of_transformers(transformers_model, image_processor)
        >>> analysis = ds.analyse(detector, "photo.jpg")
        >>> len(analysis.queries()) == len(analysis.detection["boxes"])
        True
    """
    if not hasattr(processor, "post_process_object_detection"):
        raise DeformscopeError(
            f"processor of type {type(processor).__name__}: has no post_process_object_detection; expected the image "
            "processor of an object detector"
        )
    takes_mask = "pixel_mask" in inspect.signature(model.forward).parameters
    masked = False

    def prepare(photos: list[np.ndarray], _: str | None) -> tuple[Tensor, list[Placement]]:
        nonlocal masked
        images, placements = [], []
        for photo in photos:  # one at a time: what is padded beside others is padded here, and its place is known
            made = processor(images=photo, return_tensors="pt", input_data_format="channels_last")
            image, mask = made["pixel_values"][0], made.get("pixel_mask")
            masked = masked or mask is not None
            high, wide = image.shape[-2:] if mask is None else (int(mask[0].any(1 - axis).sum()) for axis in (0, 1))
            size = (photo.shape[0], photo.shape[1])
            images.append(image[:, :high, :wide])
            placements.append(Placement(size, (high / size[0], wide / size[1])))
        return padded(images), placements

    def forward(net: nn.Module, batch: Tensor, placements: Sequence[Placement]) -> Any:
        more = {"pixel_mask": _mask(batch, placements)} if takes_mask and masked else {}
        return net(pixel_values=batch, **more)

    def run(net: nn.Module, batch: Tensor, placements: Sequence[Placement], least: float) -> list[Detection]:
        output = forward(net, batch, placements)
        sizes = torch.tensor([place.size for place in placements], device=batch.device)
        with torch.no_grad():
            found = processor.post_process_object_detection(output, threshold=least, target_sizes=sizes)
        return [
            with_query(one, output, image, place.size, classes)
            for image, (one, place) in enumerate(zip(found, placements, strict=True))
        ]

    def again(net: nn.Module, batch: Tensor, placement: Placement, found: Detection) -> Detection:
        return predicted_again(found, forward(net, batch, [placement]), placement.size, classes)

    names = getattr(model.config, "id2label", None) or {}
    classes = max(names, default=-1) + 1
    class_names = tuple(str(names.get(index, index)) for index in range(classes))
    return AdaptedDetector(model, prepare, run, class_names, name or type(model).__name__, again)


def _mask(batch: Tensor, placements: Sequence[Placement]) -> Tensor:
    """1 where the batch has photo, 0 where it is padded: [n h w]."""
    mask = torch.zeros(len(batch), *batch.shape[-2:], dtype=torch.int64, device=batch.device)
    for row, place in zip(mask, placements, strict=True):
        high, wide = place.network_size
        row[:high, :wide] = 1
    return mask


def with_query(found: Mapping[str, Any], output: Any, image: int, size: tuple[int, int], classes: int) -> Detection:
    """Detections of an image processor with the ``query`` of each and its traces, ``logits`` and ``unclipped``.

    Query and traces are left out where the network's
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


def predicted_again(found: Detection, output: Any, size: tuple[int, int], classes: int) -> Detection:
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
