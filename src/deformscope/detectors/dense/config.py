"""Configurations from which dense detectors can be built again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeVar

from ...errors import DeformscopeError
from ..offset_mode import OffsetMode, checked_offset_mode
from ..preparation import chosen_sides
from .decode import DECODES, FROM_CELL, Decode
from .masks import MASK_TERMS, OF_OFFSETS, MaskTerm
from .trunk_config import TrunkConfig

MOST_LAYERS = 32
"""Most deformable convolutions per head; files with more are refused."""
MOST_HIDDEN = 512
"""Most channels of the masks' hidden convolutions; files with more are refused."""

Config = TypeVar("Config", bound="DenseConfig")


def check_mask_terms(terms: tuple[str, ...], name: str) -> None:
    """Raise DeformscopeError for unknown or repeated terms, and for two first ones."""
    unknown = [term for term in terms if term not in MASK_TERMS]
    if unknown:
        raise DeformscopeError(f"{name}: {unknown[0]!r}; expected some of {', '.join(map(repr, MASK_TERMS))}")
    if len(set(terms)) < len(terms) or {"vote", "box"} <= set(terms):
        raise DeformscopeError(f"{name}: {', '.join(terms)}; expected each term once, and one of 'vote' and 'box'")


@dataclass(frozen=True)
class DenseConfig:
    """Configuration of a :class:`.dense.DenseDetector`."""

    class_names: tuple[str, ...]
    channels: int = 96
    modulated: bool = False
    offset_mode: OffsetMode = "full"
    shorter_side: int = 256
    longer_side: int = 448
    shared: bool = False
    """All levels share the weights of one head."""
    deform_layers: int = 1
    """Number of deformable convolutions in a head, one after the other; 0 for a head of 1×1 convolutions."""
    decode: Decode = "D0"
    """How boxes are predicted; see :mod:`.decode`."""
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    mask_terms: tuple[MaskTerm, ...] = ()
    """What masks are made of, learned from boxes alone; see :mod:`.masks`. Without any, there are none."""
    mask_hidden: int = 0
    """Channels of two 3×3 convolutions before the terms ``unary`` and ``dynamic``; 0 for none."""

    def __post_init__(self) -> None:
        chosen_sides(self.shorter_side, self.longer_side)
        checked_offset_mode(self.offset_mode)
        if self.decode not in DECODES:
            raise DeformscopeError(f"decode={self.decode!r}: expected one of {', '.join(map(repr, DECODES))}")
        check_mask_terms(self.mask_terms, "mask_terms")
        if not self.class_names:
            raise DeformscopeError("class_names=(): expected at least one class")
        if self.channels < 8 or self.channels % 8:
            raise DeformscopeError(f"channels={self.channels}: expected a multiple of 8")
        if not 0 <= self.mask_hidden <= MOST_HIDDEN or self.mask_hidden % 8:
            raise DeformscopeError(f"mask_hidden={self.mask_hidden}: expected a multiple of 8 up to {MOST_HIDDEN}")
        if not 0 <= self.deform_layers <= MOST_LAYERS:
            raise DeformscopeError(f"deform_layers={self.deform_layers}: expected 0 to {MOST_LAYERS}")
        if self.deform_layers == 0 and self.decode not in FROM_CELL:
            raise DeformscopeError(
                f"decode={self.decode!r}: with deform_layers=0 the heads have no offsets; expected "
                f"{' or '.join(map(repr, FROM_CELL))}"
            )

        of_offsets = [term for term in self.mask_terms if term in OF_OFFSETS]
        if self.deform_layers == 0 and of_offsets:
            raise DeformscopeError(
                f"mask_terms={self.mask_terms}: with deform_layers=0 the heads have no offsets; leave out "
                f"{', '.join(map(repr, of_offsets))}"
            )

    def resized_to(self: Config, shorter_side: int | None, longer_side: int | None) -> Config:
        """The same with other sides to which photos are resized, px; None keeps the present one."""
        short, long = chosen_sides(shorter_side, longer_side, (self.shorter_side, self.longer_side))
        return replace(self, shorter_side=short, longer_side=long)


@dataclass(frozen=True)
class DenseRCNNConfig(DenseConfig):
    """Configuration of a :class:`.dense_rcnn.DenseRCNN`."""

    proposals: int = 100
    """Regions per image that reach the second stage."""
    rois_per_image: int = 64
    """Regions per image sampled for the second stage's losses, up to a quarter of them objects."""
    width: int = 512
    """Width of the second stage's two layers."""
    masks: bool = False
    """Add a mask head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_terms:
            raise DeformscopeError(f"mask_terms={self.mask_terms}: only of a detector with one stage; leave it out")
        for name in ("proposals", "rois_per_image", "width"):
            if getattr(self, name) < 1:
                raise DeformscopeError(f"{name}={getattr(self, name)}: expected at least 1")
