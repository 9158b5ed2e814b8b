"""Diagnose every deformable convolution and attention of a model, with evidence and advice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field as dataclass_field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DeformscopeError, NoDeformableCall
from ..fields.attention import AttentionField
from ..fields.field import OffsetField
from ..fields.fields import Fields
from ..photo import read
from ..recording.capture import capture
from ..recording.unchanged import unchanged
from .attention_checks import attention_findings, beyond as points_beyond, in_cells
from .checks import BROKEN, SUSPECT, Finding, beyond, findings
from .report import as_html, as_text

MOST = 32
"""Largest number of images that are examined; of more, as many evenly spaced ones."""


@dataclass(frozen=True)
class LayerHealth:
    """Statistics of a layer's offsets over all images; lengths in cells of the layer's input, or of attention's maps.

    Example:
        >>> layer = ds.diagnose(detector, "photo.jpg").layers[0]
        >>> layer.layer, layer.verdict
        ('heads.stride8.before.0', 'healthy')
    """

    layer: str
    median: float
    largest: float
    beyond: float
    """Share of the sampling points that leave the map because of their offsets."""
    map_size: tuple[int, int]
    """Height and width of the layer's input for the first image, cells; of attention, its largest map."""
    modulation: float | None
    """Mean of the modulation; None for DCNv1 and attention."""
    findings: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> str:
        """``healthy``, ``suspect`` or ``broken``."""
        verdicts = {finding.verdict for finding in self.findings}
        return BROKEN if BROKEN in verdicts else SUSPECT if verdicts else "healthy"


@dataclass(frozen=True)
class Diagnosis:
    """The health of every layer.

    Example:
        >>> found = ds.diagnose(detector, ["photo.jpg"])
        >>> found.images, found.findings
        (1, ())
    """

    layers: tuple[LayerHealth, ...]
    images: int
    fields: tuple[Fields, ...] = dataclass_field(default=(), repr=False, compare=False)
    """The fields of each examined image, on the CPU."""
    unreadable: tuple[str, ...] = ()
    """What was wrong with the photos that could not be read."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, by layer."""
        return tuple(finding for layer in self.layers for finding in layer.findings)

    @property
    def broken(self) -> bool:
        """Whether a layer is broken; the command line then exits with code 1."""
        return any(finding.verdict == BROKEN for finding in self.findings)

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def to_json(self) -> dict[str, Any]:
        """Plain data; NaN and infinity become null."""
        layers = []
        for layer in self.layers:
            record = asdict(layer) | {"verdict": layer.verdict}
            layers.append({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()})
        return {
            "images": self.images,
            "unreadable": list(self.unreadable),
            "broken": self.broken,
            "layers": layers,
        }


def diagnose(model: nn.Module, images: Any, forward: Callable[[Any], Any] | None = None) -> Diagnosis:
    """Run ``model`` on images and examine the offsets of every deformable convolution, and every deformable attention.

    ``images``: for deformscope's detectors, a photo or a list of photos; for other modules, the batch ``[n c h w]``
    that they take, or a list of such batches. ``forward`` runs the model on one of them, if ``model(one)`` does not.
    Files that cannot be read are left out, and told in ``unreadable``. Computes no gradients; modes, weights and
    buffers of the model are unchanged, and so are the random numbers that come next; NaN offsets do not crash
    torchvision's operator here.

    ``print`` of the result, or showing it in a notebook, gives a table.

    Raises NoDeformableCall when no deformable convolution ran, and DeformscopeError without images.

    Example:
        >>> found = ds.diagnose(detector, "photo.jpg")
        >>> found.broken
        False
    """
    several = list(images) if isinstance(images, (list, tuple)) else [images]
    if not several:
        raise DeformscopeError("images=[]: expected at least one photo or batch")
    chosen = several[:: -(-len(several) // MOST)]
    seen: list[Fields] = []
    unreadable: list[str] = []
    refused: tuple[LayerHealth, ...] = ()
    with unchanged(model), torch.no_grad():
        for one in chosen:
            if isinstance(one, Tensor) and one.ndim == 4 and not len(one):
                raise DeformscopeError(f"images: batch of shape {tuple(one.shape)}: expected at least one image")
            if isinstance(one, (str, Path)):
                try:
                    photo = read(one)
                except DeformscopeError as error:
                    unreadable.append(str(error))
                    continue
                one = one if forward else photo
            try:
                with capture(model, broken=True) as fields:
                    (forward or model)(one)
            except (RuntimeError, DeformscopeError) as error:
                refused = _refused(model, error)
                if not refused:
                    raise
            seen.append(fields.to("cpu"))
            if refused:
                break
    if not seen:
        raise DeformscopeError(f"images: none could be read, the first being {unreadable[0]}")
    layers = (*_healths(seen), *_attention_healths(seen), *refused)
    if not layers:
        maps = any(fields or fields.attention for fields in seen)
        found = (
            "only maps without cells"
            if maps
            else "no deformable convolution or attention, and nothing else has offsets"
        )
        raise NoDeformableCall(f"{getattr(model, 'name', type(model).__name__)}: diagnose found {found}")
    return Diagnosis(layers, len(seen), tuple(seen), tuple(unreadable))


def _healths(seen: Sequence[Fields]) -> list[LayerHealth]:
    """The health of each layer, from the fields of several images; maps without cells, or of no image, say nothing."""
    layers: dict[str, list[OffsetField]] = {}
    for fields in seen:
        for name, field in fields.items():
            if field.offset.numel():
                layers.setdefault(name, []).append(field)
    return [health(layer, fields) for layer, fields in layers.items()]


def _attention_healths(seen: Sequence[Fields]) -> list[LayerHealth]:
    """The health of each layer of deformable attention."""
    layers: dict[str, list[AttentionField]] = {}
    for fields in seen:
        for name, field in fields.attention.items():
            if field.points.numel():
                layers.setdefault(name, []).append(field)
    return [attention_health(layer, fields) for layer, fields in layers.items()]


def attention_health(layer: str, fields: Sequence[AttentionField]) -> LayerHealth:
    """Statistics and findings of a layer of deformable attention; lengths in cells of each point's map."""
    lengths = torch.cat([in_cells(field).flatten() for field in fields])
    return LayerHealth(
        layer,
        median=float(lengths.median()),
        largest=float(lengths.max()),
        beyond=sum(float(points_beyond(field).mean()) for field in fields) / len(fields),
        map_size=max(fields[0].level_sizes),
        modulation=None,
        findings=attention_findings(layer, fields),
    )


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


def _refused(model: nn.Module, error: Exception) -> tuple[LayerHealth, ...]:
    """The layer whose operator refuses its offsets, since their map has another size than its output; or nothing."""
    if isinstance(error.__cause__, (RuntimeError, DeformscopeError)):  # of an adapted network, told as ours
        error = error.__cause__
    text = " ".join(str(error).split())
    own = isinstance(error, DeformscopeError) and text.startswith(("offset of shape", "mask of shape"))
    theirs = isinstance(error, RuntimeError) and ("offset" in text or "mask output" in text)
    if isinstance(error, NoDeformableCall) or not (own or theirs):
        return ()
    name = _innermost(model, error)
    advice = "give the offset convolution its layer's own kernel size, stride, padding, dilation and channel count"
    finding = Finding(name, "misplaced", BROKEN, f"the operator refuses the offsets: {text[:240]}", advice)
    return (LayerHealth(name, math.nan, math.nan, math.nan, (0, 0), None, (finding,)),)


def _innermost(model: nn.Module, error: Exception) -> str:
    """Name of the innermost module of the model in which an error was raised."""
    names = {id(module): name for name, module in model.named_modules() if name}
    found, trace = type(model).__name__, error.__traceback__
    while trace is not None:
        found = names.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return found
