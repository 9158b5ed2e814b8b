"""The record of one photo: the fields of a detector's deformable convolutions and attention, and the detections."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field as dataclass_field, fields as dataclass_fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import DeformscopeError
from .fields.attention import AttentionField
from .fields.field import OffsetField
from .fields.fields import Fields
from .fields.places import CellGrid, Placement
from .fields.stack import DEEPEST, composed, upstream
from .files import write_tensors
from .from_dict import from_dict
from .photo import Photo, read
from .recording.capture import capture

FORMAT = "deformscope.analysis.1"


@dataclass(frozen=True)
class Analysis:
    """The record of one photo, from which figures and pages are made.

    Example:
        >>> analysis = ds.analyse(detector, "photo.jpg")
        >>> analysis.save("photo.safetensors")
        >>> list(ds.Analysis.load("photo.safetensors").fields) == list(analysis.fields)
        True
    """

    photo: np.ndarray
    """RGB uint8 [h w 3], upright."""
    fields: Fields
    """Fields of one image (n = 1), on the CPU."""
    detection: dict[str, Tensor] = dataclass_field(default_factory=dict)
    """``boxes`` [d 4] xyxy px, ``labels`` [d], ``scores`` [d] and, for detectors with masks, ``masks`` [d h w]; for
    those with object queries ``query`` [d], the one that made each."""
    class_names: tuple[str, ...] = ()
    detector: str = ""

    def with_composed(self) -> Analysis:
        """The same with composed fields: after each layer that has layers below it, the field of it and up to two of
        them."""
        fields: dict[str, OffsetField] = {}
        for name, field in self.fields.items():
            fields[name] = field
            stack = upstream(self.fields, name, DEEPEST)
            if len(stack) > 1:
                whole = composed(stack)
                fields[whole.name] = whole
        return replace(self, fields=Fields(fields, self.fields.attention))

    @property
    def decoder(self) -> dict[str, AttentionField]:
        """The attention of object queries, by name: of the decoder's layers, in order."""
        return {name: field for name, field in self.fields.attention.items() if not field.is_dense}

    def queries(self) -> list[int]:
        """The object query of each detection, best first: as the detector says, or else the one whose last reference
        lies nearest."""
        if "query" in self.detection:
            return self.detection["query"].tolist()
        last, boxes = next(reversed(self.decoder.values()), None), self.detection.get("boxes")
        return [] if last is None or boxes is None else last.nearest(boxes).tolist()

    def save(self, path: Path | str) -> None:
        """Save to a safetensors file, which appears whole or not at all."""
        tensors = {"photo": torch.from_numpy(np.ascontiguousarray(self.photo))}
        tensors |= {f"detection/{key}": value.contiguous() for key, value in self.detection.items()}
        records = []
        for index, field in enumerate(self.fields.values()):
            tensors[f"field/{index}/offset"] = field.offset.contiguous()
            if field.modulation is not None:
                tensors[f"field/{index}/modulation"] = field.modulation.contiguous()
            geometry: dict[str, Any] = {
                one.name: getattr(field, one.name, None) for one in dataclass_fields(_FieldHeader)
            }
            if not all(isinstance(value, int) for value in (*field.stride, *field.padding)):
                layout = (tuple(map(float, field.stride)), tuple(map(float, field.padding)))
                geometry |= {"stride": (1, 1), "padding": (0, 0), "layout": layout}
            records.append(asdict(_FieldHeader(**geometry)))
        attention = []
        for index, one in enumerate(self.fields.attention.values()):
            tensors |= {f"attention/{index}/{key}": value for key, value in _attention_tensors(one).items()}
            attention.append(asdict(_AttentionHeader(**{key: getattr(one, key) for key in _ATTENTION_HEADER})))
        header = {"fields": records, "attention": attention, "class_names": self.class_names, "detector": self.detector}
        write_tensors(path, tensors, {"format": FORMAT, "header": json.dumps(header)})

    @classmethod
    def load(cls, path: Path | str) -> Analysis:
        """Load a file of :meth:`save`. Raises DeformscopeError for other files."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(Path(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise DeformscopeError(f"{path}: format {metadata.get('format')!r}; expected {FORMAT!r}")
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from None
        try:
            header = from_dict(_Header, json.loads(metadata.get("header", "null")), "header")
            fields = {one.name: _field(one, index, tensors) for index, one in enumerate(header.fields)}
            attention = {one.name: _attention(one, index, tensors) for index, one in enumerate(header.attention)}
            photo = _tensor(tensors, "photo", (None, None, 3), torch.uint8)
            detection = _detection(tensors, header.class_names)
        except (DeformscopeError, ValueError, RecursionError) as error:
            raise _unreadable(path, error) from None
        return cls(photo.numpy(), Fields(fields, attention), detection, header.class_names, header.detector)


@dataclass(frozen=True)
class _FieldHeader:
    """The header of a field in a file, without its tensors."""

    name: str
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    input_size: tuple[int, int]
    cells: CellGrid | None
    placements: tuple[Placement, ...]
    unplaced: str = ""
    network_size: tuple[int, int] | None = None
    below: str | None = None
    absent: tuple[int, ...] = ()
    layout: tuple[tuple[float, float], tuple[float, float]] | None = None
    """Stride and padding where they are no whole numbers."""


@dataclass(frozen=True)
class _AttentionHeader:
    """The header of an attention field in a file."""

    name: str
    level_sizes: tuple[tuple[int, int], ...]
    input_size: tuple[int, int]
    placements: tuple[Placement, ...]


_ATTENTION_HEADER = tuple(one.name for one in dataclass_fields(_AttentionHeader))


@dataclass(frozen=True)
class _Header:
    fields: tuple[_FieldHeader, ...]
    class_names: tuple[str, ...]
    detector: str
    attention: tuple[_AttentionHeader, ...] = ()
    """Files of earlier versions have none."""


def _unreadable(path: Path | str, error: Exception) -> DeformscopeError:
    reason = " ".join(str(error).split())[:300]  # it may quote the file
    return DeformscopeError(f"{path}: no readable analysis ({reason}); make it again")


def _field(header: _FieldHeader, index: int, tensors: Mapping[str, Tensor]) -> OffsetField:
    # Kernels without a regular grid, as those of attention, have a dilation of 0.
    bounds = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 0, "input_size": 0}
    for key, least in bounds.items():
        if min(getattr(header, key)) < least:
            raise DeformscopeError(f"header.fields[{index}].{key}: {getattr(header, key)}; expected at least {least}")
    reduction = (1.0, 1.0) if header.cells is None else header.cells.reduction
    scales = (
        reduction,
        header.network_size or (1, 1),
        *(side for one in header.placements for side in (one.scale, one.size)),
    )
    if any(value <= 0 for scale in scales for value in scale):
        raise DeformscopeError(f"header.fields[{index}]: {scales}; expected sizes and scales above 0")
    points = header.kernel_size[0] * header.kernel_size[1]
    if not all(0 <= point < points for point in header.absent):
        raise DeformscopeError(f"header.fields[{index}].absent: {header.absent}; expected points below {points}")
    offset = _tensor(tensors, f"field/{index}/offset", (None, None, points, None, None, 2))
    if not offset.is_floating_point():
        raise DeformscopeError(f"field/{index}/offset of type {offset.dtype}: expected floats")
    key = f"field/{index}/modulation"
    modulation = _tensor(tensors, key, tuple(offset.shape[:-1]), offset.dtype) if key in tensors else None
    geometry = {one.name: getattr(header, one.name) for one in dataclass_fields(header) if one.name != "layout"}
    if header.layout is not None:
        geometry["stride"], geometry["padding"] = header.layout
        if min(header.layout[0]) <= 0:
            raise DeformscopeError(f"header.fields[{index}].layout: {header.layout}; expected strides above 0")
    return OffsetField(offset=offset, modulation=modulation, **geometry)


def _attention_tensors(field: AttentionField) -> dict[str, Tensor]:
    found = {"points": field.points, "reference": field.level_reference, "level": field.level}
    found |= {} if field.weights is None else {"weights": field.weights}
    return {key: value.contiguous() for key, value in found.items()}


def _attention(header: _AttentionHeader, index: int, tensors: Mapping[str, Tensor]) -> AttentionField:
    where, levels = f"header.attention[{index}]", len(header.level_sizes)
    scales = (header.input_size, *header.level_sizes, *(side for p in header.placements for side in (p.scale, p.size)))
    if not levels or any(value <= 0 for scale in scales for value in scale):
        raise DeformscopeError(f"{where}: {scales}; expected levels, and sizes and scales above 0")
    prefix = f"attention/{index}/"
    points = _tensor(tensors, prefix + "points", (None, None, None, None, 2))
    if not points.is_floating_point():
        raise DeformscopeError(f"{prefix}points of type {points.dtype}: expected floats")
    n, q, h, p, _ = points.shape
    if header.placements and len(header.placements) != n:
        raise DeformscopeError(f"{where}: {len(header.placements)} placements; expected {n}")
    level = _tensor(tensors, prefix + "level", (p,), torch.int64)
    if p and not (level.min() >= 0 and level.max() < levels):
        raise DeformscopeError(f"{prefix}level: from {level.min()} to {level.max()}; expected below {levels}")
    reference = _tensor(tensors, prefix + "reference", (n, q, levels, None), points.dtype)
    key = prefix + "weights"
    weights = _tensor(tensors, key, (n, q, h, p), points.dtype) if key in tensors else None
    geometry = {key: getattr(header, key) for key in _ATTENTION_HEADER}
    return AttentionField(points=points, weights=weights, level_reference=reference, level=level, **geometry)


def _detection(tensors: Mapping[str, Tensor], class_names: Sequence[str]) -> dict[str, Tensor]:
    found = {k.removeprefix("detection/"): v for k, v in tensors.items() if k.startswith("detection/")}
    count = len(found["boxes"]) if "boxes" in found and found["boxes"].ndim else 0
    shapes: dict[str, tuple[int | None, ...]] = {"boxes": (count, 4), "scores": (count,), "labels": (count,)}
    shapes["query"] = (count,)
    shapes["masks"] = (count, None, None)
    for key, shape in shapes.items():
        if key in found:
            _tensor(tensors, f"detection/{key}", shape)
    labels = found.get("labels", torch.zeros(0))
    if class_names and len(labels) and not (labels.min() >= 0 and labels.max() < len(class_names)):
        raise DeformscopeError(f"labels up to {labels.max()}; expected those of {len(class_names)} class names")
    return found


def _tensor(
    tensors: Mapping[str, Tensor], key: str, shape: tuple[int | None, ...], kind: torch.dtype | None = None
) -> Tensor:
    """The tensor with this name, shape (None: any length) and type."""
    if key not in tensors:
        raise DeformscopeError(f"no tensor {key!r}")
    found = tensors[key]
    fits = found.ndim == len(shape) and all(b is None or a == b for a, b in zip(found.shape, shape, strict=True))
    if not fits or (kind is not None and found.dtype != kind):
        sides = " ".join("·" if side is None else str(side) for side in shape)
        of = "" if kind is None else f" of type {kind}"
        raise DeformscopeError(f"{key!r}: {list(found.shape)} of type {found.dtype}; expected [{sides}]{of}")
    return found


def analyse(detector: nn.Module, photo: Photo) -> Analysis:
    """Run a detector (``deformscope.load(...)``) on one photo and record its fields and detections.

    Raises DeformscopeError for a module that is no detector, and so does not prepare photos.

    Example:
        >>> analysis = ds.analyse(detector, "photo.jpg")
        >>> analysis.photo.shape, len(analysis.fields)
        ((300, 451, 3), 6)
    """
    if not hasattr(detector, "prepare"):
        raise DeformscopeError(
            f"detector: {type(detector).__name__} is no detector of deformscope; make one of it with ds.adapt(model, "
            "prepare=…), or record its fields alone: with ds.capture(model) as fields: model(images)"
        )
    array = read(photo)
    with capture(detector) as fields:
        detection = detector(array)[0]
    single = {name: field.to("cpu") for name, field in fields.items() if field.offset.shape[0] == 1}
    queries = {name: field.to("cpu") for name, field in fields.attention.items() if field.points.shape[0] == 1}
    return Analysis(
        photo=array,
        fields=Fields(single, queries),
        detection={key: value.cpu() for key, value in detection.items() if isinstance(value, Tensor)},
        class_names=tuple(getattr(detector, "class_names", ())),
        detector=str(getattr(detector, "name", type(detector).__name__)),
    )
