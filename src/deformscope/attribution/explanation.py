"""The records of an explanation: what each sampling point adds to one output, and where each wants to go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field as dataclass_field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import DeformscopeError
from ..fields.field import OffsetField
from .attention import AttentionAttribution
from .receptive_field import ReceptiveField, on_photo


@dataclass(frozen=True)
class Attribution:
    """What the sampling points of one deformable convolution add to the explained output y.

    For each of g offset groups, k kernel points and h × w output cells p0: a_n(p0) = m_n · ⟨w_nᵀ ∂y/∂z(p0), x(P_n)⟩,
    where z is the layer's output, x(P_n) what point n reads and m_n its modulation (1 in v1). The a_n sum to ⟨∂y/∂z, z⟩
    without the bias: to what y would lose, to first order, if the layer's output vanished.

    Example:
        >>> layer = ds.explain(detector, "photo.jpg").layer()
        >>> layer.points.shape, layer.by_point().shape
        (torch.Size([1, 9, 8, 13]), torch.Size([1, 9]))
    """

    field: OffsetField
    """The layer's offsets, of one image."""
    points: Float[Tensor, "g k h w"]
    """a_n(p0), in units of y."""
    offset_gradient: Float[Tensor, "g k h w 2"]
    """∂y/∂Δp_n(p0), (dy, dx), in units of y per input cell: where a point wants to go (Zhu et al., CVPR 2019)."""
    call: int | None = 0
    """The layer's number among the calls of deformable operators in a forward pass, from 0; None for modules that are
    made of other operators."""

    @property
    def total(self) -> float:
        """The sum over the map."""
        return float(self.points.double().sum())

    def by_point(self) -> Float[Tensor, "g k"]:
        """Each kernel point's sum over the map."""
        return self.points.sum(dim=(2, 3))

    def by_cell(self) -> Float[Tensor, "h w"]:
        """Each output cell's sum over its sampling points."""
        return self.points.sum(dim=(0, 1))

    def places(self) -> Float[Tensor, "g k h w 2"]:
        """Where the sampling points lie, (y, x) in photo px."""
        return self.field.to_pixels(self.field.sampling_points())[0]

    def strongest_cell(self) -> tuple[int, int]:
        """The output cell (y, x) whose points' magnitudes sum to most: in a last layer, the predicting cell."""
        strength = self.points.abs().sum(dim=(0, 1))
        y, x = divmod(int(strength.argmax()), strength.shape[1])
        return y, x


@dataclass(frozen=True)
class Explanation:
    """Why one output is what it is: :func:`deformscope.explain` makes it.

    Example:
        >>> why = ds.explain(detector, "photo.jpg")
        >>> why.label, list(why.reached)
        ('cat', ['heads.stride32.before.0', 'heads.stride32.deform'])
    """

    layers: Mapping[str, Attribution]
    """By the layer's name, in the network's order; zeros where y does not depend on a layer."""
    receptive_field: ReceptiveField
    of: str
    """What is explained: ``score``, ``iou``, ``left``, …, or a function's name (``output`` for a lambda)."""
    value: float
    """y."""
    photo: np.ndarray | None = None
    """RGB uint8 [h w 3]; None for models that prepare no photos."""
    detection: dict[str, Tensor] = dataclass_field(default_factory=dict)
    """The explained detection: one row of ``boxes``, ``labels``, ``scores`` and what else the detector says of it."""
    class_names: tuple[str, ...] = ()
    detector: str = ""
    attention: Mapping[str, AttentionAttribution] = dataclass_field(default_factory=dict)
    """The same of deformable attention, by the layer's name."""
    unexplained: Mapping[str, str] = dataclass_field(default_factory=dict)
    """Layers that were captured and cannot be attributed, by name, and why. y may depend on them."""

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """The detection's box, xyxy in photo px; None without one."""
        if "boxes" not in self.detection:
            return None
        x0, y0, x1, y1 = self.detection["boxes"][0].tolist()
        return x0, y0, x1, y1

    @property
    def label(self) -> str:
        """The detection's class."""
        if "labels" not in self.detection:
            return ""
        label = int(self.detection["labels"][0])
        return self.class_names[label] if 0 <= label < len(self.class_names) else str(label)

    @property
    def reached(self) -> dict[str, Attribution]:
        """The layers on which y depends."""
        return {name: layer for name, layer in self.layers.items() if bool((layer.points != 0).any())}

    @property
    def reached_attention(self) -> dict[str, AttentionAttribution]:
        """The layers of deformable attention on which y depends."""
        return {name: layer for name, layer in self.attention.items() if bool((layer.points != 0).any())}

    @property
    def left_out(self) -> str:
        """:attr:`unexplained` as the end of a sentence; empty where all layers are explained."""
        named = ", ".join(f"{name} ({why})" for name, why in self.unexplained.items())
        return f"; captured, but not explained: {named}" if named else ""

    def layer(self, name: str | None = None) -> Attribution:
        """The attribution in one layer: the one named, by default the last on which y depends."""
        if name is None:
            if not self.reached:
                which = "explained" if self.unexplained else "captured"
                attention = "; deformable attention is in explanation.attention" if self.attention else ""
                raise DeformscopeError(
                    f"layer=None: the output depends on no {which} deformable convolution{attention}{self.left_out}"
                )
            return list(self.reached.values())[-1]
        if name not in self.layers:
            known = ", ".join(map(repr, self.layers)) or "none"
            raise DeformscopeError(f"layer={name!r}: expected one of the explained layers: {known}{self.left_out}")
        return self.layers[name]

    def heatmap(self, layer: str | None = None, *, signed: bool = False) -> Float[np.ndarray, "h w"]:
        """Attribution as a map over the photo, 0..1 (``signed``: −1..1), as Grad-CAM's: for other tools' metrics.

        Each sampling point of ``layer`` (default: the last on which y depends) is spread by a Gaussian whose standard
        deviation is half a cell; negative sums count as 0 unless ``signed``.

        Example, in pytorch-grad-cam: ``show_cam_on_image(photo / 255, explanation.heatmap(), use_rgb=True)``.
        """
        from scipy.ndimage import gaussian_filter

        chosen = self.layer(layer)
        field, placement = chosen.field, chosen.field.placement()
        h, w = self.receptive_field.gradient.shape
        network = field.input_cells.to_network(field.sampling_points())[0].reshape(-1, 2)
        y, x = network.floor().long().unbind(-1)
        inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
        spread = torch.zeros(h, w, dtype=torch.float64)
        spread.index_put_((y[inside], x[inside]), chosen.points.reshape(-1)[inside].double(), accumulate=True)
        sigma = [abs(reduction) / 2 for reduction in field.reduction]
        smooth = torch.from_numpy(gaussian_filter(spread.numpy(), sigma, mode="constant"))
        return on_photo(smooth if signed else smooth.clamp(min=0), placement)
