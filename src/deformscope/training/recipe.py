"""Recipes: everything that decides a training run, as frozen dataclasses; :mod:`.reading` reads them from YAML.

Lengths are counted in steps, never in epochs, so that a run's length does not depend on which photos were left out.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from ..detectors.dense import DenseConfig, DenseRCNNConfig, TrunkConfig
from ..detectors.dense.config import MASK_TERMS, Decode, MaskTerm
from ..detectors.options import OffsetMode
from ..detectors.rcnn import RCNNConfig
from ..errors import DeformscopeError

OffsetLoss = Literal["centre", "extent"]
DENSE = ("small", "dense", "dense_rcnn")
"""Architectures with dense heads."""


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
    that boxes alone are needed; or annotated ones. Null for annotated ones where a network needs masks; ``small`` and
    ``dense`` with ``network.masks`` have no default."""
    cache: str | None = None
    """A folder in which to keep the frozen trunk's feature maps of every photo in each of ``views``; null to compute
    them in every step."""


@dataclass(frozen=True)
class Network:
    """The network to train."""

    architecture: str
    """``small``; ``dense``, the packaged detector's; ``dense_rcnn``, a Faster R-CNN whose regions are proposed by the
    same heads; or a name that :func:`deformscope.detectors.build` knows, such as ``faster_rcnn_r50_fpn``."""
    offset_mode: OffsetMode = "full"
    deformable: str | None = "dconv_c3-c5"
    """For the ResNet detectors: version, stages and offset groups of the deformable convolutions; null for none."""
    modulated: bool = False
    """For ``small``, ``dense`` and ``dense_rcnn``: deformable convolution v2."""
    channels: int = 96
    """For the same: channels of the pyramid and the heads."""
    shared: bool = False
    """For the same: all pyramid levels share the weights of one head."""
    deform_layers: int = 1
    """For the same: number of deformable convolutions in a head; 0 for heads of 1×1 convolutions."""
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    """For the same: backbone, deformable blocks, blocks that are trained, where the trunk is cut, levels with heads."""
    decode: Decode = "D0"
    """For the same: how boxes are predicted, from the cell (``D0``) or from the place and size of its kernel (``D2``);
    see :mod:`deformscope.detectors.dense.heads`."""
    proposals: int | None = None
    """For ``dense_rcnn``: regions per image that reach the second stage; null for 100."""
    rois_per_image: int | None = None
    """For ``dense_rcnn``: regions per image sampled for the second stage's losses; null for 64."""
    masks: bool = False
    """Predict masks too: ``dense_rcnn`` as Mask R-CNN does, for which the objects of the photos need masks; ``small``
    and ``dense`` with ``data.mask_targets``."""
    mask_terms: tuple[MaskTerm, ...] | None = None
    """For ``small`` and ``dense`` with ``masks``: ``[unary, dynamic]``, or null for the same; see
    :mod:`deformscope.detectors.dense.masks`."""
    mask_hidden: int = 0
    """For the same: channels of two 3×3 convolutions before the terms; 0 for none."""
    weights: str | None = None
    """Initial weights of the trunk (the backbone without its pyramid): a file; ``packaged``, the packaged detector's;
    ``torchvision``, a ResNet trained on ImageNet, downloaded by torchvision; null for random weights."""
    start: str | None = None
    """Initial weights of the whole network: a file that deformscope saved, or ``packaged``. What it lacks begins at
    random; null for the trunk's ``weights`` alone."""
    freeze: tuple[str, ...] = ()
    """Shell patterns of the names of parameters to freeze, besides those that the architecture freezes itself."""

    @property
    def has_masks(self) -> bool:
        """The network learns from masks, whatever ``data.mask_targets`` says."""
        return (self.masks and self.architecture == "dense_rcnn") or self.architecture.startswith("mask_")

    def config(self, class_names: tuple[str, ...]) -> DenseConfig | RCNNConfig:
        """The configuration of the detector. Raises DeformscopeError for one that cannot be, and for settings of other
        architectures."""
        plain = Network(self.architecture)
        if self.architecture != "dense_rcnn" and (self.proposals, self.rois_per_image) != (None, None):
            raise DeformscopeError(
                f"proposals, rois_per_image: settings of dense_rcnn, not of {self.architecture}; leave them out"
            )
        if self.mask_terms is not None and (not self.masks or self.architecture not in DENSE[:2]):
            raise DeformscopeError("mask_terms: of small and dense with masks=true; leave them out")
        if self.architecture not in DENSE:
            for name in ("decode", "trunk", "masks"):
                if getattr(self, name) != getattr(plain, name):
                    raise DeformscopeError(
                        f"{name}: a setting of {', '.join(DENSE)}, not of {self.architecture}; leave it out"
                    )
            return RCNNConfig.named(self.architecture, self.deformable, self.offset_mode, class_names)
        shared: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("channels", "modulated", "offset_mode", "shared", "deform_layers", "decode", "trunk")
        }
        if self.architecture == "dense_rcnn":
            second = {"proposals": self.proposals, "rois_per_image": self.rois_per_image}
            shared |= {name: value for name, value in second.items() if value is not None}
            return DenseRCNNConfig(class_names, **shared, masks=self.masks, mask_hidden=self.mask_hidden)
        terms = (MASK_TERMS if self.mask_terms is None else self.mask_terms) if self.masks else ()
        return DenseConfig(class_names, **shared, mask_terms=terms, mask_hidden=self.mask_hidden)


@dataclass(frozen=True)
class Supervision:
    """A loss on the offsets; see :class:`deformscope.training.OffsetSupervision`."""

    weight: float = 0.5
    loss: tuple[OffsetLoss, ...] = ("centre", "extent")
    """The losses to be summed."""
    layers: tuple[str, ...] = ()
    """Shell patterns of the names of deformable layers; empty for the last of each head or, in networks without such
    heads, all."""
    composed: int | None = None
    """Number of stacked layers that are composed to one field; null for all of a dense detector's head, otherwise
    one."""
    schedule: Literal["constant", "decay", "warmup"] = "constant"
    schedule_steps: int | None = None
    """Steps after which ``decay`` is zero, or ``warmup`` has reached ``weight``; null for half of the run."""
    targets: Literal["boxes", "shuffled"] = "boxes"
    """``shuffled`` is a control: each photo gets the boxes of the next one in its batch."""
    side_branch: bool = False
    """A control: supervise separate convolutions beside those that predict the offsets, which move no kernel."""
    task_gradient: float = 1.0
    """Factor on the other losses' gradient into the offsets."""

    def __post_init__(self) -> None:
        least: dict[str, tuple[float, float]] = {
            "weight": (self.weight, 0),
            "composed": (1 if self.composed is None else self.composed, 1),
            "schedule_steps": (1 if self.schedule_steps is None else self.schedule_steps, 1),
            "task_gradient": (self.task_gradient, 0),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                raise DeformscopeError(f"optimiser.offset_supervision.{name}: {value}; expected at least {bound}")
        if not self.loss:
            raise DeformscopeError("optimiser.offset_supervision.loss: []; expected such as [centre, extent]")


@dataclass(frozen=True)
class Optimiser:
    """The optimiser and its learning-rate schedule."""

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    offset_lr: float = 1.0
    """Learning-rate multiplier of the convolutions that predict the offsets."""
    trunk_lr: float = 1.0
    """Learning-rate multiplier of the other parameters of the trunk."""
    offset_penalty: float = 0.0
    """Weight of the offsets' mean square (cells², summed over the layers) in the loss; 0 for no penalty."""
    offset_supervision: Supervision | None = None
    """A loss on the offsets from the boxes; null for none."""
    grad_clip_norm: float | None = None
    """Gradients are scaled down to this total norm; null for no clipping."""
    schedule: Literal["constant", "multi_step", "one_cycle"] = "multi_step"
    milestones: tuple[int, ...] = ()
    """For ``multi_step``: steps at which the learning rate is multiplied by ``gamma``."""
    gamma: float = 0.1
    warmup: int = 0
    """Steps of linear warm-up; for ``one_cycle``, of the rise."""
    warmup_start: float = 0.001
    """Fraction of the learning rate at which the warm-up starts."""


@dataclass(frozen=True)
class Run:
    """Length, seed, precision and hardware."""

    steps: int = 1000
    seed: int = 0
    """Decides the initial weights, the order of the photos and every random draw."""
    checkpoint_every: int = 500
    """Steps between checkpoints, from which an interrupted run resumes."""
    evaluate_every: int = 0
    """Steps between evaluations, a multiple of ``checkpoint_every``; 0 to evaluate at the end only."""
    log_every: int = 50
    snapshots: tuple[int, ...] = ()
    """Steps after which the detector is saved as ``step-N.safetensors``, to watch its offsets grow; 0 for the start."""
    precision: Literal["32", "bf16", "16"] = "32"
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is then evaluated and saved; null for none."""
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1


@dataclass(frozen=True)
class Evaluation:
    """How AP is measured."""

    classes: tuple[str, ...] = ()
    """Classes over which AP is averaged; empty for all that occur."""
    photos: int | None = None
    """Number of photos of ``val``, in the order of the file; null for all."""
    score: float = 0.05
    """Detections below this score are dropped."""
    nms: float = 0.5
    """IoU above which the lower-scoring of two boxes of a class is dropped."""


@dataclass(frozen=True)
class Expected:
    """What the recipe needs and yields, and whether that was measured."""

    hardware: str
    hours: str
    result: str


@dataclass(frozen=True)
class Recipe:
    """One training run."""

    name: str
    network: Network
    expected: Expected
    data: Data = field(default_factory=Data)
    optimiser: Optimiser = field(default_factory=Optimiser)
    run: Run = field(default_factory=Run)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        run, data, network, optimiser = self.run, self.data, self.network, self.optimiser
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
            "optimiser.lr": (optimiser.lr, 0),
            "optimiser.offset_lr": (optimiser.offset_lr, 0),
            "optimiser.trunk_lr": (optimiser.trunk_lr, 0),
            "optimiser.offset_penalty": (optimiser.offset_penalty, 0),
            "optimiser.warmup": (optimiser.warmup, 0),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                raise DeformscopeError(f"{name}: {value}; expected at least {bound}")
        if run.evaluate_every % run.checkpoint_every:
            raise DeformscopeError(
                f"run.evaluate_every: {run.evaluate_every}; expected a multiple of run.checkpoint_every, "
                f"{run.checkpoint_every}, or 0 for the end only"
            )
        try:
            network.config(("object",))
        except DeformscopeError as error:
            raise DeformscopeError(f"network.{error}") from None
        by_terms = network.masks and network.architecture in DENSE[:2]
        if by_terms != (data.mask_targets is not None) and not network.has_masks:
            raise DeformscopeError(
                f"data.mask_targets: {data.mask_targets!r}; "
                + (
                    "masks are learned from grabcut or annotated ones; say which"
                    if by_terms
                    else f"{network.architecture} learns no masks; leave it out, or set network.masks=true"
                )
            )
        supervision = optimiser.offset_supervision
        if supervision is not None and network.offset_mode == "none":
            raise DeformscopeError(
                "optimiser.offset_supervision: network.offset_mode is 'none', there are no offsets; set it to null"
            )
        if supervision is not None and supervision.targets == "shuffled" and data.batch < 2 * run.devices * run.nodes:
            raise DeformscopeError(
                "optimiser.offset_supervision.targets: 'shuffled' needs two photos a device; "
                f"data.batch is {data.batch}"
            )
        processes = run.devices * run.nodes
        if data.batch % processes:
            raise DeformscopeError(f"data.batch: {data.batch}; expected a multiple of the {processes} devices")
        if not data.views or ("photo" in data.views and len(set(data.views)) > 1):
            raise DeformscopeError(f"data.views: {list(data.views)}; expected 'photo' alone, or views on the canvas")
        if data.cache is not None and "photo" in data.views:
            raise DeformscopeError("data.cache: needs views of one size; set data.views to whole, crop or mosaic")
        if optimiser.schedule == "one_cycle" and not 1 < optimiser.warmup < run.steps:
            raise DeformscopeError(f"optimiser.warmup: {optimiser.warmup}; one_cycle needs 2 to {run.steps - 1}")

    @property
    def learns_masks(self) -> bool:
        """Training needs a mask of each object."""
        return self.network.has_masks or self.data.mask_targets is not None

    def with_(self, *, offset_mode: OffsetMode | None = None, seed: int | None = None) -> Recipe:
        """The same recipe with another offset mode or seed."""
        network = self.network if offset_mode is None else replace(self.network, offset_mode=offset_mode)
        return replace(self, network=network, run=self.run if seed is None else replace(self.run, seed=seed))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return json.loads(json.dumps(asdict(self)))

    def deciding(self) -> dict[str, Any]:
        """Plain values of what decides the numbers: not ``expected``, ``cache``, ``workers`` and what is saved."""
        values = self.to_dict()
        for part, key in (("run", "log_every"), ("run", "snapshots"), ("data", "workers"), ("data", "cache")):
            del values[part][key]
        del values["expected"]
        return values

    @property
    def fingerprint(self) -> str:
        """16 hex digits of :meth:`deciding`.

        A version of deformscope whose recipes have other keys gives another fingerprint.
        """
        return hashlib.sha256(json.dumps(self.deciding(), sort_keys=True).encode()).hexdigest()[:16]
