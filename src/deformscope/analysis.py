"""One photo, the fields that a detector's deformable convolutions had on it, and what the detector found."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field as dataclass_field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .capture.recorder import Fields, capture
from .errors import DeformscopeError
from .fields.field import CellGrid, OffsetField, Placement
from .fields.stack import DEEPEST, composed, upstream
from .files import write_tensors
from .photo import Photo, read

FORMAT = "deformscope.analysis.1"


@dataclass(frozen=True)
class Analysis:
    """One photo's record: all that figures, pages and scores are made from."""

    photo: np.ndarray
    """RGB uint8 [h w 3], upright."""
    fields: Fields
    """Each of one image (n = 1), on the CPU."""
    detection: dict[str, Tensor] = dataclass_field(default_factory=dict)
    """``boxes`` [d 4] xyxy px, ``labels`` [d], ``scores`` [d], and ``masks`` [d h w] where there are any."""
    class_names: tuple[str, ...] = ()
    detector: str = ""

    def with_composed(self) -> Analysis:
        """The same with, after each layer that has others below it, the field that it and up to two of them make."""
        fields: dict[str, OffsetField] = {}
        for name, field in self.fields.items():
            fields[name] = field
            stack = upstream(self.fields, name, DEEPEST)
            if len(stack) > 1:
                whole = composed(stack)
                fields[whole.name] = whole
        return replace(self, fields=Fields(fields))

    def save(self, path: Path | str) -> None:
        """Write everything to one safetensors file, which appears whole or not at all."""
        tensors = {"photo": torch.from_numpy(np.ascontiguousarray(self.photo))}
        tensors |= {f"detection/{key}": value.contiguous() for key, value in self.detection.items()}
        records = []
        for index, field in enumerate(self.fields.values()):
            tensors[f"field/{index}/offset"] = field.offset.contiguous()
            if field.modulation is not None:
                tensors[f"field/{index}/modulation"] = field.modulation.contiguous()
            geometry = {key: getattr(field, key) for key in _GEOMETRY}
            placements = [asdict(placement) for placement in field.placements]
            records.append(geometry | {"cells": asdict(field.cells), "placements": placements, "below": field.below})
        header = {"fields": records, "class_names": self.class_names, "detector": self.detector}
        write_tensors(path, tensors, {"format": FORMAT, "header": json.dumps(header)})

    @classmethod
    def load(cls, path: Path | str) -> Analysis:
        """Read what :meth:`save` wrote. Raises DeformscopeError for anything else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(Path(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise DeformscopeError(f"{path}: format {metadata.get('format')!r}; expected {FORMAT!r}")
                header = json.loads(metadata["header"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
        except (SafetensorError, OSError) as error:
            raise DeformscopeError(f"{path}: no readable analysis ({error}); make it again") from None
        fields = {}
        for index, record in enumerate(header["fields"]):
            geometry: dict[str, Any] = {key: tuple(v) if isinstance(v := record[key], list) else v for key in _GEOMETRY}
            fields[record["name"]] = OffsetField(
                offset=tensors[f"field/{index}/offset"],
                modulation=tensors.get(f"field/{index}/modulation"),
                cells=CellGrid(**{key: tuple(value) for key, value in record["cells"].items()}),
                placements=tuple(Placement(**{k: tuple(v) for k, v in p.items()}) for p in record["placements"]),
                below=record.get("below"),
                **geometry,
            )
        detection = {k.removeprefix("detection/"): v for k, v in tensors.items() if k.startswith("detection/")}
        return cls(
            tensors["photo"].numpy(), Fields(fields), detection, tuple(header["class_names"]), header["detector"]
        )


_GEOMETRY = ("name", "kernel_size", "stride", "padding", "dilation", "input_size")


def analyse(detector: nn.Module, photo: Photo) -> Analysis:
    """Run a detector (``deformscope.load(...)``) on one photo and keep its fields and detections."""
    array = read(photo)
    with capture(detector) as fields:
        detection = detector(array)[0]
    single = {name: field.to("cpu") for name, field in fields.items() if field.offset.shape[0] == 1}
    return Analysis(
        photo=array,
        fields=Fields(single),
        detection={key: value.cpu() for key, value in detection.items() if isinstance(value, Tensor)},
        class_names=tuple(getattr(detector, "class_names", ())),
        detector=str(getattr(detector, "name", type(detector).__name__)),
    )
