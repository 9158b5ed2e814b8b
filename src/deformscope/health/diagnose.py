"""Diagnose the offsets of every deformable convolution of a model, with evidence and advice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field as dataclass_field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..capture.recorder import capture
from ..errors import DeformscopeError
from ..fields.field import OffsetField
from ..fields.fields import Fields
from .checks import BROKEN, SUSPECT, Finding, beyond, findings

if TYPE_CHECKING:
    from rich.table import Table

MOST = 32
"""Largest number of images that are examined; of more, as many evenly spaced ones."""


@dataclass(frozen=True)
class LayerHealth:
    """Statistics of a layer's offsets over all images; lengths in cells of the layer's input."""

    layer: str
    median: float
    largest: float
    beyond: float
    """Share of the sampling points that leave the map because of their offsets."""
    map_size: tuple[int, int]
    """Height and width of the layer's input for the first image, cells."""
    modulation: float | None
    """Mean of the modulation; None for DCNv1."""
    findings: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> str:
        """``healthy``, ``suspect`` or ``broken``."""
        verdicts = {finding.verdict for finding in self.findings}
        return BROKEN if BROKEN in verdicts else SUSPECT if verdicts else "healthy"


@dataclass(frozen=True)
class Diagnosis:
    """The health of every layer."""

    layers: tuple[LayerHealth, ...]
    images: int
    fields: tuple[Fields, ...] = dataclass_field(default=(), repr=False, compare=False)
    """The fields of each examined image, on the CPU."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, by layer."""
        return tuple(finding for layer in self.layers for finding in layer.findings)

    @property
    def broken(self) -> bool:
        """Whether a layer is broken; the command line then exits with code 1."""
        return any(finding.verdict == BROKEN for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain data; NaN and infinity become null."""
        layers = []
        for layer in self.layers:
            record = asdict(layer) | {"verdict": layer.verdict}
            layers.append({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()})
        return {"images": self.images, "broken": self.broken, "layers": layers}


def diagnose(model: nn.Module, images: Any, forward: Callable[[Any], Any] | None = None) -> Diagnosis:
    """Run ``model`` on images and examine the offsets of every deformable convolution.

    ``images``: for deformscope's detectors, a photo or a list of photos; for other modules, the batch ``[n c h w]``
    that they take, or a list of such batches. ``forward`` runs the model on one of them, if ``model(one)`` does not.
    Computes no gradients; mode and weights of the model are unchanged; NaN offsets do not crash torchvision's operator
    here.

    Raises NoDeformableCall when no deformable convolution ran, and DeformscopeError without images.
    """
    several = list(images) if isinstance(images, (list, tuple)) else [images]
    if not several:
        raise DeformscopeError("images=[]: expected at least one photo or batch")
    chosen = several[:: -(-len(several) // MOST)]
    seen: list[Fields] = []
    for one in chosen:
        try:
            with torch.no_grad(), capture(model, broken=True) as fields:
                (forward or model)(one)
        except RuntimeError as error:
            refused = _refused(model, error)
            if refused is None:
                raise
            return Diagnosis((refused,), len(chosen))
        seen.append(fields.to("cpu"))
    layers = dict.fromkeys(name for fields in seen for name in fields)
    healths = (health(layer, [fields[layer] for fields in seen if layer in fields]) for layer in layers)
    return Diagnosis(tuple(healths), len(chosen), tuple(seen))


def health(layer: str, fields: Sequence[OffsetField]) -> LayerHealth:
    """Statistics and findings of a layer, from its fields on several images."""
    lengths = torch.cat([field.offset.norm(dim=-1).flatten() for field in fields])
    weights = [field.modulation.mean().item() for field in fields if field.modulation is not None]
    return LayerHealth(
        layer,
        median=float(lengths.median()),
        largest=float(lengths.max()),
        beyond=sum(beyond(field) for field in fields) / len(fields),
        map_size=fields[0].input_size,
        modulation=sum(weights) / len(weights) if weights else None,
        findings=findings(layer, fields),
    )


def _refused(model: nn.Module, error: RuntimeError) -> LayerHealth | None:
    """Explain that the operator refuses offsets whose map has another size than its output."""
    text = " ".join(str(error).split())
    if "offset" not in text:
        return None
    name = type(model).__name__
    advice = "give the offset convolution its layer's own kernel size, stride, padding, dilation and channel count"
    finding = Finding(name, "misplaced", BROKEN, f"the operator refuses the offsets: {text[:240]}", advice)
    return LayerHealth(name, math.nan, math.nan, math.nan, (0, 0), None, (finding,))


def as_table(diagnosis: Diagnosis, title: str = "") -> Table:
    """The diagnosis as a table for the terminal: a row per layer, and one per finding below it."""
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    table.add_column("layer", overflow="fold")
    for heading in ("median |offset|", "largest", "map", "beyond map", "modulation"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    table.add_column("evidence and advice", overflow="fold", ratio=1)
    colours = {BROKEN: "red", SUSPECT: "yellow", "healthy": "green"}
    for layer in diagnosis.layers:
        said = "\n".join(f"{f.ailment}: {f.evidence}\n→ {f.advice}" for f in layer.findings)
        table.add_row(
            layer.layer,
            f"{layer.median:.3g}",
            f"{layer.largest:.3g}",
            "×".join(map(str, layer.map_size)),
            f"{layer.beyond:.1%}",
            "–" if layer.modulation is None else f"{layer.modulation:.2f}",
            f"[{colours[layer.verdict]}]{layer.verdict}[/]",
            said,
        )
    table.caption = f"lengths in cells of the layer's input · {diagnosis.images} image{'s'[: diagnosis.images != 1]}"
    return table
