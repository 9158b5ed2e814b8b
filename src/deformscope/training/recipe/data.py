"""What a recipe says about its photos: where they are, and how a batch is made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Shapes:
    """The synthetic data set, which is drawn during training."""

    train: int = 2000
    val: int = 400
    size: tuple[int, int] = (128, 160)
    """Height and width, px."""
    difficulty: float = 0.5
    """From 0, plain objects on a plain background, to 1, objects with textures and colours like the background's."""
    one_class: bool = False
    """Give all shapes the class ``object``, so that only their places and sizes are left to learn."""
    seed: int = 0
    """Another seed draws other images of the same kind."""


@dataclass(frozen=True)
class Data:
    """The photos, and how a batch is made of them."""

    folder: str | None = None
    """A folder in COCO's layout; null for :class:`Shapes`."""
    shapes: Shapes = field(default_factory=Shapes)
    train: str = "train"
    val: str = "val"
    """Names of the splits: ``annotations/instances_SPLIT.json`` and the photos in ``SPLIT/``."""
    batch: int = 8
    """Photos per step, over all devices together."""
    workers: int = 0
    """Processes per device that load and augment photos; 0 to do it in the training process."""
    broken: Literal["refuse", "skip"] = "refuse"
    """Stop before training when annotations are broken, or leave these annotations out."""
    empty: Literal["keep", "drop"] = "keep"
    """Keep or drop photos without objects."""
    group_by_aspect: bool = True
    """Put portrait and landscape photos in different batches, which saves padding."""
    views: tuple[Literal["photo", "whole", "crop", "mosaic"], ...] = ("photo",)
    """How a photo is shown, drawn at random from this list: ``photo``, resized as for detection; or, on ``canvas``,
    ``whole``, a ``crop``, or a ``mosaic`` of four photos."""
    canvas: tuple[int, int] = (256, 320)
    """Height and width of ``whole``, ``crop`` and ``mosaic``, px."""
    shorter_sides: tuple[int, ...] = ()
    """For ``photo``: lengths of the shorter side, px, one drawn at random; empty for the length used in detection."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    copy_paste: float = 0.0
    """Probability that the objects of another photo are pasted in by their masks (Ghiasi et al., CVPR 2021)."""
    mask_targets: Literal["grabcut", "annotated"] | None = None
    """The masks from which masks are learned: those that GrabCut makes of the annotated boxes before the training, so
    that boxes alone are needed; or annotated ones. Null for annotated ones where a network needs masks, and for losses
    of boxes alone with ``network.mask_terms``."""
    cache: str | None = None
    """A folder in which to keep the frozen trunk's feature maps of every photo in each of ``views``; null to compute
    them in every step."""
