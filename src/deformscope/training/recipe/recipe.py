"""Recipes: all that decides a training run, as frozen dataclasses; :mod:`.reading` reads them from YAML.

Everything is counted in steps, none of it in epochs, so that a run's length does not depend on what was left out of the
data.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from ...detectors.checkpoints.former_names import ARCHITECTURES
from ...errors import DeformscopeError

OffsetMode = Literal["none", "feature", "kernel", "full"]


@dataclass(frozen=True)
class Network:
    """What is trained."""

    architecture: str
    """``small``; ``dense``, the packaged detector's; ``dense_rcnn``, which proposes regions by the same heads; or a
    name that :func:`deformscope.detectors.rcnn.build` knows. The former names of the dense ones are read too."""
    offset_mode: OffsetMode = "full"
    deformable: str | None = "dconv_c3-c5"
    """Of a two-stage detector: version, stages and groups, or null."""
    modulated: bool = False
    """Of the dense detectors: deformable convolution v2."""
    channels: int = 96
    """Width of the dense detectors' pyramid and heads."""
    shared: bool = False
    """Of the dense detectors: one head's weights for all levels."""
    stacked: int = 1
    """Of the dense detectors: deformable convolutions a head."""
    proposals: int | None = None
    """Of ``dense_rcnn``: regions a photo that reach the second stage; null: 100."""
    rois: int | None = None
    """Of ``dense_rcnn``: regions a photo from which the second stage learns; null: 64."""
    masks: bool = False
    """Of ``dense_rcnn``: masks too, as Mask R-CNN; the photos' objects need them."""
    weights: str | None = None
    """Where the trunk starts: a file; ``packaged`` (the packaged detector's trunk); ``torchvision`` (ResNet-50 on
    ImageNet, fetched by torchvision); null for random."""
    freeze: tuple[str, ...] = ()
    """Shell patterns of parameter names that do not learn, beyond what the architecture freezes itself."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "architecture", ARCHITECTURES.get(self.architecture, self.architecture))


@dataclass(frozen=True)
class Shapes:
    """The data set that is drawn on the fly."""

    train: int = 2000
    val: int = 400
    size: tuple[int, int] = (128, 160)
    """Height and width, px."""
    difficulty: float = 0.5
    """0: plain objects that stand out from a plain ground; 1: textures and colours of objects like the ground's."""
    one_class: bool = False
    """All shapes are of the class ``object``: what is left to learn is where they are and how large."""
    seed: int = 0
    """Which images are drawn; another seed, other images of the same kind."""


@dataclass(frozen=True)
class Data:
    """What it learns from, and how photos become a batch."""

    folder: str | None = None
    """In COCO's layout; null for shapes."""
    shapes: Shapes = field(default_factory=Shapes)
    train: str = "train"
    val: str = "val"
    """Splits: ``annotations/instances_SPLIT.json`` beside ``SPLIT/``."""
    batch: int = 8
    """Photos a step, over all devices together."""
    workers: int = 0
    """Processes that load and augment, a device; 0: none."""
    broken: Literal["refuse", "skip"] = "refuse"
    """What to do when annotations are broken: stop before training, or leave them out."""
    empty: Literal["keep", "drop"] = "keep"
    """Photos without any object that counts."""
    group_by_aspect: bool = True
    """Tall and wide photos in different batches, which saves padding."""
    views: tuple[Literal["photo", "whole", "crop", "mosaic"], ...] = ("photo",)
    """As what a photo is shown, one of these by chance: itself, resized as for detection; or, on ``canvas``, whole, as
    a crop, or in a mosaic of four."""
    canvas: tuple[int, int] = (256, 320)
    """Height and width of the other views, px."""
    shorter_sides: tuple[int, ...] = ()
    """For ``photo``: multi-scale training, one of these by chance; empty: as for detection."""
    flip: float = 0.5
    copy_paste: float = 0.0
    """Chance that the objects of another photo are pasted in by their masks (Ghiasi et al., CVPR 2021)."""
    cache: str | None = None
    """A folder for the frozen trunk's maps, every photo in each of ``views`` once; null: the trunk runs every step."""


@dataclass(frozen=True)
class Optimiser:
    """How it learns."""

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    offset_lr: float = 1.0
    """Learning-rate multiplier of the convolutions that make the offsets."""
    offset_penalty: float = 0.0
    """Weight, in the loss, of the offsets' mean square (cells², summed over the layers); 0: they are free."""
    clip: float | None = None
    """Largest norm of all gradients together."""
    schedule: Literal["constant", "multi_step", "one_cycle"] = "multi_step"
    milestones: tuple[int, ...] = ()
    """Steps after which the rate falls by ``gamma``."""
    gamma: float = 0.1
    warmup: int = 0
    """Steps of linear warm-up (one-cycle: of its rise)."""
    warmup_start: float = 0.001
    """The share of the rate with which the warm-up begins."""


@dataclass(frozen=True)
class Run:
    """How long, in which numbers, on what."""

    steps: int = 1000
    seed: int = 0
    """Decides the initial weights, the order of the data and every random draw."""
    checkpoint_every: int = 500
    """Steps between checkpoints, from which a broken run goes on."""
    evaluate_every: int = 0
    """Steps between evaluations, a multiple of ``checkpoint_every``; 0: at the end only."""
    log_every: int = 50
    snapshots: tuple[int, ...] = ()
    """Steps after which the detector is kept as ``step-N.safetensors``, to watch its offsets grow; 0: as it begins."""
    precision: Literal["32", "bf16", "16"] = "32"
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is then what is evaluated and kept."""
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1


@dataclass(frozen=True)
class Evaluation:
    """What counts at the end."""

    classes: tuple[str, ...] = ()
    """AP is averaged over these; empty: over all that occur."""
    photos: int | None = None
    """Only the first so many of ``val``."""
    score: float = 0.05
    nms: float = 0.5


@dataclass(frozen=True)
class Promise:
    """What the recipe gives, and whether that was measured."""

    hardware: str
    hours: str
    result: str


@dataclass(frozen=True)
class Recipe:
    """One training run."""

    name: str
    network: Network
    promise: Promise
    data: Data = field(default_factory=Data)
    optimiser: Optimiser = field(default_factory=Optimiser)
    run: Run = field(default_factory=Run)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        run, data = self.run, self.data
        least = {
            "run.steps": (run.steps, 1),
            "run.checkpoint_every": (run.checkpoint_every, 1),
            "run.log_every": (run.log_every, 1),
            "run.devices": (run.devices, 1),
            "run.nodes": (run.nodes, 1),
            "run.seed": (run.seed, 0),
            "data.batch": (data.batch, 1),
            "data.workers": (data.workers, 0),
            "data.shapes.seed": (data.shapes.seed, 0),
            "network.stacked": (self.network.stacked, 1),
            "network.proposals": (1 if self.network.proposals is None else self.network.proposals, 1),
            "network.rois": (1 if self.network.rois is None else self.network.rois, 1),
            "optimiser.lr": (self.optimiser.lr, 0),
            "optimiser.offset_penalty": (self.optimiser.offset_penalty, 0),
            "optimiser.warmup": (self.optimiser.warmup, 0),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                raise DeformscopeError(f"{name}: {value}; expected at least {bound}")
        if run.evaluate_every % run.checkpoint_every:
            raise DeformscopeError(
                f"run.evaluate_every: {run.evaluate_every}; expected a multiple of run.checkpoint_every, "
                f"{run.checkpoint_every}, or 0 for the end only"
            )
        second_stage = self.network.proposals, self.network.rois, self.network.masks
        if self.network.architecture != "dense_rcnn" and second_stage != (None, None, False):
            raise DeformscopeError(
                "network.proposals, network.rois, network.masks: of dense_rcnn, not of "
                f"{self.network.architecture}; leave them out"
            )
        processes = run.devices * run.nodes
        if data.batch % processes:
            raise DeformscopeError(f"data.batch: {data.batch}; expected a multiple of the {processes} devices")
        if not data.views or ("photo" in data.views and len(set(data.views)) > 1):
            raise DeformscopeError(f"data.views: {list(data.views)}; expected 'photo' alone, or views on the canvas")
        if data.cache is not None and "photo" in data.views:
            raise DeformscopeError("data.cache: needs views of one size; set data.views to whole, crop or mosaic")
        if self.optimiser.schedule == "one_cycle" and not 1 < self.optimiser.warmup < run.steps:
            raise DeformscopeError(f"optimiser.warmup: {self.optimiser.warmup}; one_cycle needs 2 to {run.steps - 1}")

    def with_(self, *, offset_mode: OffsetMode | None = None, seed: int | None = None) -> Recipe:
        """The same recipe in another offset mode or with another seed."""
        network = self.network if offset_mode is None else replace(self.network, offset_mode=offset_mode)
        return replace(self, network=network, run=self.run if seed is None else replace(self.run, seed=seed))

    def to_values(self) -> dict[str, Any]:
        """Plain values, as JSON gives them back."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def fingerprint(self) -> str:
        """16 hex digits of what decides the numbers: all but the promise, what is kept of a run and where files lie."""
        values = self.to_values()
        for part, key in (("run", "log_every"), ("run", "snapshots"), ("data", "workers"), ("data", "cache")):
            del values[part][key]
        del values["promise"]
        # In the first names, so that finished runs stay those of their recipes.
        former = {new: old for old, new in ARCHITECTURES.items()}
        values["network"]["architecture"] = former.get(self.network.architecture, self.network.architecture)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
