"""What the explorer's page carries: photos, offsets and detections, small enough for a mail's attachment.

Offsets are rounded to whole steps of at most 1/256 cell and held as 16-bit integers, so that each is at most 1/512 cell
beside its value (:func:`quantise` says when more). Neighbours' differences, low and high bytes apart, are deflated; the
page undoes this with the browser's own ``DecompressionStream``.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor

from ..analysis import Analysis
from ..attribution.explanation import Explanation
from ..backdrop import fields_on_photo, reduced
from ..errors import DeformscopeError
from ..fields.cell_maps import finite
from ..fields.field import OffsetField
from ..fields.fields import Fields
from ..fields.places import Placement
from ..fields.segments import Segments, segments as grow
from .attention import encoder_level, queries_record
from .attributions import why_records
from .packing import packed_bytes, packed_steps

STEP = 1 / 256
"""Cells: the coarsest step in which offsets up to :data:`WHOLE` steps are rounded."""
WHOLE = 32_767
MISSING = -32_768
"""Stands for an offset that is not a finite number."""
FARTHEST = 600.0
"""Cells: offsets beyond it are cut, so that the error stays below 1/100 cell whatever else a field holds."""
FEWEST_STEPS = 256
"""The largest offset is at least so many steps long, so that a field of tiny offsets keeps its shape."""
NO_MODULATION = 255
MOST_PX = 1600
"""Px along the longer side of the photo in the page; a larger one is shrunk, its coordinates are kept."""
MASK_PX = 320
THUMBNAIL_PX = 160
MOST_DETECTIONS = 100


@dataclass(frozen=True)
class Quantised:
    """Offsets as whole steps."""

    steps: Integer[np.ndarray, "*shape"]
    """int16; MISSING where the offset is not finite."""
    step: float
    """Cells a step."""
    cut: int
    """How many components lay beyond FARTHEST and stand there now."""

    def offsets(self) -> Float[np.ndarray, "*shape"]:
        """The offsets that the page sees, cells."""
        return np.where(self.steps == MISSING, np.nan, self.steps * self.step)


def quantise(offset: Float[Tensor, "*shape"]) -> Quantised:
    """Round offsets (cells) to whole steps; each is then at most step / 2 off, and that is below 1/100 cell.

    The step is 1/256 cell, finer where all offsets are tiny, and coarser (at most 0.0184 cells) where the largest
    would not fit into 16 bits.
    """
    values = offset.detach().cpu().double().numpy()
    finite = np.isfinite(values)
    known = np.where(finite, values, 0.0)
    largest = min(float(np.abs(known).max(initial=0.0)), FARTHEST)
    step = max(min(STEP, largest / FEWEST_STEPS), largest / WHOLE) or STEP
    # A step below float32's own grain would say nothing, and a denormal one could not be divided by.
    step = max(step, 1e-12)
    steps = np.clip(np.rint(known / step), -WHOLE, WHOLE).astype(np.int16)
    return Quantised(np.where(finite, steps, np.int16(MISSING)), step, int((np.abs(known) > FARTHEST).sum()))


def layer_record(field: OffsetField, segments: Segments | None = None) -> dict[str, Any]:
    """One layer's field (n = 1) as the page reads it; raises DeformscopeError for a batch."""
    images, groups, _, h, w, _ = field.offset.shape
    if images != 1:
        raise DeformscopeError(f"field {field.name!r}: {images} images; expected one: take field.select(i)")
    quantised = quantise(field.offset[0].movedim(-1, 2))  # [g k 2 h w]: planes compress better than pairs
    placement = field.placement()
    record: dict[str, Any] = {
        "name": field.name,
        "below": field.below,
        "groups": groups,
        "size": [h, w],
        "kernel": field.kernel_size,
        "stride": field.stride,
        "padding": field.padding,
        "dilation": field.dilation,
        "cells": {"reduction": field.input_cells.reduction, "origin": field.input_cells.origin},
        "placement": {"scale": placement.scale, "shift": placement.shift},
        "step": quantised.step,
        "cut": quantised.cut,
        "missing": int((quantised.steps == MISSING).sum()),
        "offset": packed_steps(quantised.steps),
    }
    if field.modulation is not None:
        record["modulation"] = _modulation(field.modulation[0])
    if segments is not None:
        labels = _shrunk(np.clip(segments.labels, 0, WHOLE))
        scores = [round(float(score), 4) if np.isfinite(score) else None for score in segments.scores]
        record["segments"] = {"size": labels.shape, "labels": packed_steps(labels), "scores": scores}
    return record


def grown(fields: Fields) -> dict[str, Segments]:
    """The segments of each layer by its name, at most MOST_PX large; none of a layer with offsets that are no
    numbers."""
    return {name: grow(_coarse(field)) for name, field in fields.items() if finite(field)}


def _coarse(field: OffsetField) -> OffsetField:
    """The field on its photo as the page shows it, at most MOST_PX large."""
    place = field.placement()
    shrink = min(1.0, MOST_PX / max(place.size))
    size = max(1, round(place.size[0] * shrink)), max(1, round(place.size[1] * shrink))
    scale = place.scale[0] * place.size[0] / size[0], place.scale[1] * place.size[1] / size[1]
    return replace(field, placements=(Placement(size, scale, place.shift),) * field.offset.shape[0])


def photo_record(
    analysis: Analysis,
    title: str,
    segments: Mapping[str, Segments],
    explanations: Mapping[int, Explanation] | None = None,
) -> dict[str, Any]:
    """All that the page needs of one photo; what it finds in ``analysis`` beyond finite numbers is left out.

    ``explanations`` are of some of its detections, by row.
    """
    if not analysis.fields and not analysis.fields.attention:
        raise DeformscopeError(
            f"analysis of {title!r}: no offset field; expected at least one deformable convolution or attention"
        )
    _, fields = fields_on_photo(analysis.fields, analysis.photo)
    analysis = replace(analysis, fields=fields)
    for name in segments:
        analysis.fields[name]  # raises, naming the layers there are
    layers = [layer_record(field, segments.get(name)) for name, field in analysis.fields.items()]
    attention = _attention(analysis)
    return {
        "title": title,
        "detector": analysis.detector,
        "size": list(analysis.photo.shape[:2]),
        "image": data_uri(analysis.photo, MOST_PX, 86),
        "layers": layers + attention,
        "start": attention[-1]["name"] if attention and not layers else "",
        **_detections(analysis, explanations or {}),
    }


def _attention(analysis: Analysis) -> list[dict[str, Any]]:
    """The layers of attention: each level of an encoder's as a field, object queries as they are."""
    records: list[dict[str, Any]] = []
    for field in analysis.fields.attention.values():
        if not field.is_dense:
            records.append(queries_record(field))
            continue
        for level in range(len(field.level_sizes)):
            together, more = encoder_level(field, level)
            records.append(layer_record(together) | more)
    return records


def data_uri(photo: np.ndarray, most: int, quality: int) -> str:
    """A photo (RGB uint8) as a JPEG in a data URI, its longer side at most ``most`` px."""
    from PIL import Image

    image = Image.fromarray(reduced(photo, factor) if (factor := max(photo.shape) // (2 * most)) > 1 else photo)
    image.thumbnail((most, most), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True, progressive=False)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def script_text(record: Mapping[str, Any]) -> str:
    """JSON that is safe between script tags: no ``</script>``, no ``<!--``, whatever a name holds."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A lone surrogate (a file's name that is no UTF-8) could not be written to the page's file.
    text = text.encode("utf-8", "replace").decode("utf-8")
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _modulation(modulation: Float[Tensor, "g k h w"]) -> dict[str, Any]:
    values = modulation.detach().cpu().double().numpy()
    finite = np.isfinite(values)
    known = np.where(finite, values, 0.0)
    low, high = min(0.0, float(known.min(initial=0.0))), max(1.0, float(known.max(initial=0.0)))
    step = (high - low) / (NO_MODULATION - 1)
    steps = np.where(finite, np.rint((known - low) / step), NO_MODULATION).astype(np.uint8)
    return {"low": low, "step": step, "data": packed_bytes(steps)}


def _detections(analysis: Analysis, explanations: Mapping[int, Explanation]) -> dict[str, Any]:
    found = analysis.detection
    if "boxes" not in found or not len(found["boxes"]):
        return {"detections": []}
    boxes = found["boxes"].detach().cpu().double()
    scores = found["scores"].detach().cpu().double() if "scores" in found else torch.ones(len(boxes)).double()
    labels = found["labels"].tolist() if "labels" in found else [-1] * len(boxes)
    usable = (boxes.isfinite().all(dim=1) & scores.isfinite()).nonzero().flatten()
    kept = usable[scores[usable].argsort(descending=True, stable=True)][:MOST_DETECTIONS].tolist()
    names, queries = analysis.class_names, analysis.queries()
    record: dict[str, Any] = {
        "detections": [
            {
                "box": [round(value, 2) for value in boxes[i].tolist()],
                "score": round(float(scores[i]), 4),
                "label": names[labels[i]] if 0 <= labels[i] < len(names) else str(labels[i]) if labels[i] >= 0 else "",
                **({"query": queries[i]} if queries else {}),
            }
            for i in kept
        ]
    }
    if explanations:
        record["whys"] = why_records(explanations, kept, list(analysis.fields))
    masks = found.get("masks")
    if masks is not None and kept:
        record["masks"] = _masks(masks[kept])
    return record


def _masks(masks: Tensor) -> dict[str, Any]:
    small = _shrunk((masks.cpu() > 0).byte().numpy())
    return {"size": small.shape[1:], "data": packed_bytes(small)}


def _shrunk(maps: Shaped[np.ndarray, "*maps h w"]) -> Shaped[np.ndarray, "*maps _ _"]:
    """Maps over a photo, their longer side at most MASK_PX; each pixel left has the value at its centre."""
    height, width = maps.shape[-2:]
    shrink = min(1.0, MASK_PX / max(height, width))
    h, w = max(1, round(height * shrink)), max(1, round(width * shrink))
    y, x = (
        np.minimum((np.arange(n) + 0.5) * whole / n, whole - 1).astype(int) for n, whole in ((h, height), (w, width))
    )
    return maps[..., y[:, None], x]


def titles_of(analyses: Sequence[Analysis], titles: Sequence[str]) -> list[str]:
    """The photos' titles: as given, or numbered; raises DeformscopeError where their counts differ."""
    if titles and len(titles) != len(analyses):
        raise DeformscopeError(f"titles: {len(titles)} given for {len(analyses)} photos; expected one a photo")
    return list(titles) or [f"photo {number}" for number in range(1, len(analyses) + 1)]
