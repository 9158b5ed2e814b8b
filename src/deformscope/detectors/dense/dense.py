"""The packaged architecture: deformable 3×3s a pyramid level, then only 1×1 convolutions; every in-box cell predicts.

A cell anywhere inside an object must find the whole object through one deformable kernel, so that the offsets have to
say where the object is (d_f) and how large (d_k). Anchor-free boxes after FCOS (Tian et al., ICCV 2019), without its
centre-ness; an IoU branch ranks instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.ops import (
    FeaturePyramidNetwork,
    batched_nms,
    clip_boxes_to_image,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from ...capture.recorder import placed
from ...errors import DeformscopeError
from ...fields.field import Placement
from ...ops.gradient import graded
from ..deform import DeformConv
from ..detector import Detection, Detector
from ..offset_mode import OffsetMode
from . import decode

STRIDES = (8, 16, 32)
MULTIPLE = 32
LEVEL_RANGES = ((0.0, 64.0), (48.0, 140.0), (110.0, float("inf")))
"""sqrt(box area), network px, for which each level's cells are positive; they overlap."""
BACKGROUND, IGNORED = -1, -2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DenseConfig:
    """What it takes to build the network again."""

    class_names: tuple[str, ...]
    channels: int = 96
    modulated: bool = False
    offset_mode: OffsetMode = "full"
    shorter_side: int = 256
    longer_side: int = 448
    shared: bool = False
    """The levels' heads have the same weights."""
    deform_layers: int = 1
    """Deformable convolutions a head, one after the other."""
    decode: str = "D0"
    """How boxes are made: one of :data:`.decode.DECODES`."""


class Trunk(nn.Module):
    """ImageNet MobileNetV2 up to stride 32, frozen; its maps at strides 8, 16 and 32 (32, 96 and 320 channels)."""

    taps: ClassVar = {6: "stride8", 13: "stride16", 17: "stride32"}
    channels = (32, 96, 320)

    def __init__(self) -> None:
        super().__init__()
        self.features = mobilenet_v2().features[:18]
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Trunk:
        """Stay in eval mode: the running statistics are frozen."""
        return super().train(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised RGB ``[n 3 h w]`` to maps by name."""
        maps = {}
        for index, block in enumerate(self.features):
            images = block(images)
            if index in self.taps:
                maps[self.taps[index]] = images
        return maps


class LevelHead(nn.Module):
    """One level's predictions: deformable 3×3, GroupNorm, ReLU (perhaps several times), and 1×1 convolutions."""

    def __init__(self, config: DenseConfig, classes: int) -> None:
        super().__init__()
        if config.decode not in decode.DECODES:
            raise DeformscopeError(f"decode={config.decode!r}: expected one of {', '.join(map(repr, decode.DECODES))}")
        channels = config.channels

        def deform() -> DeformConv:
            return DeformConv(channels, channels, modulated=config.modulated, offset_mode=config.offset_mode)

        self.before = nn.Sequential()
        for _ in range(config.deform_layers - 1):
            self.before.extend([deform(), nn.GroupNorm(channels // 8, channels), nn.ReLU()])
        self.deform = deform()
        self.norm = nn.GroupNorm(channels // 8, channels)
        self.mix = nn.Conv2d(channels, 2 * channels, 1)
        self.cls = nn.Conv2d(2 * channels, classes, 1)
        self.box = nn.Conv2d(2 * channels, 4, 1)
        self.iou = nn.Conv2d(2 * channels, 1, 1)
        # The class bias is a prior of 1 %, as focal loss wants it (Lin et al., ICCV 2017).
        for layer, bias in ((self.cls, -4.6), (self.box, decode.BIAS[config.decode]), (self.iou, 0.0)):
            nn.init.normal_(layer.weight, std=0.01)
            layer.bias = nn.Parameter(torch.full((layer.out_channels,), bias))
        # After the others, which so have the same initial weights however boxes are decoded.
        self.decoding = config.decode
        if config.decode in decode.FROM_KERNEL_ALONE:
            del self.box
        if config.decode in decode.SCALED:
            self.log_scale = nn.Parameter(torch.full((2,), decode.LOG_SCALE[config.decode]))
        if config.decode == "D4":
            self.told = nn.utils.skip_init(nn.Conv2d, 4, 2 * channels, 1, bias=False)  # draws no random numbers
            nn.init.zeros_(self.told.weight)
        self.task_gradient = 1.0
        """What of the boxes' gradient flows into the offsets, where they are decoded from them."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor, list[Tensor]]:
        """Class logits, what boxes are decoded from, IoU logits, and the offsets of the head's layers, lowest first.

        Where boxes are not decoded from offsets these are not given.
        """
        if self.decoding in decode.FROM_CELL:
            x = F.relu(self.mix(F.relu(self.norm(self.deform(self.before(x))))))
            return self.cls(x), self.box(x), self.iou(x), []
        offsets = []
        for layer in (*self.before, self.deform):
            if isinstance(layer, DeformConv):
                offset, modulation = layer.offsets(x)
                offsets.append(graded(offset, self.task_gradient))
                x = layer(x, (offset, modulation))
            else:
                x = layer(x)
        x = self.mix(F.relu(self.norm(x)))
        if self.decoding == "D4":
            x = x + self.told(decode.numbers(offsets).to(x.dtype))
        x = F.relu(x)
        return self.cls(x), None if self.decoding in decode.FROM_KERNEL_ALONE else self.box(x), self.iou(x), offsets


@dataclass(frozen=True)
class Predictions:
    """Dense predictions of all levels, flattened over their cells: p cells in all."""

    cls: Tensor
    """Class logits [n p classes]."""
    boxes: Tensor
    """xyxy, network px [n p 4]."""
    iou: Tensor
    """IoU logits [n p]."""
    centres: Tensor
    """Cell centres (x, y), network px [p 2]."""
    level: Tensor
    """Level index of each cell [p]."""
    pyramid: dict[str, Tensor]
    """The maps that were looked into, by name [n c h w]."""


class DenseDetector(Detector):
    """Trunk, pyramid and heads: photos to detections, and maps of the trunk to losses for training."""

    def __init__(self, config: DenseConfig, name: str = "dense", *, classes: int | None = None) -> None:
        """``classes`` that the dense predictions tell apart, by default all."""
        super().__init__()
        self.name, self.config, self.class_names = name, config, config.class_names
        self.trunk = Trunk()
        self.fpn = FeaturePyramidNetwork(list(Trunk.channels), config.channels)
        classes = len(config.class_names) if classes is None else classes
        self.heads = nn.ModuleDict({f"stride{stride}": LevelHead(config, classes) for stride in STRIDES})
        if config.shared:
            first, *others = self.heads.values()
            for other in others:
                _share(first, other)

    def prepare(self, photos: Sequence[np.ndarray]) -> tuple[Tensor, list[Placement]]:
        """Keep-ratio bilinear resize, ImageNet normalisation, zero padding to multiples of 32 at right and bottom."""
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        images, placements = [], []
        for photo in photos:
            height, width = photo.shape[:2]
            scale = min(self.config.shorter_side / min(height, width), self.config.longer_side / max(height, width))
            size = max(1, round(height * scale)), max(1, round(width * scale))
            resized = Image.fromarray(photo).resize(size[::-1], Image.Resampling.BILINEAR)
            images.append((torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255 - mean) / std)
            placements.append(Placement((height, width), (size[0] / height, size[1] / width)))
        shape = [-(-max(image.shape[axis] for image in images) // MULTIPLE) * MULTIPLE for axis in (1, 2)]
        batch = torch.zeros(len(images), 3, *shape)
        for slot, image in zip(batch, images, strict=True):
            slot[:, : image.shape[1], : image.shape[2]] = image
        return batch, placements

    def detect(
        self,
        batch: Tensor,
        placements: Sequence[Placement],
        *,
        min_score: float = 0.05,
        nms: float = 0.5,
        max_detections: int = 100,
    ) -> list[Detection]:
        """``boxes`` (xyxy, photo px, clipped to the photo), ``labels`` (0-based) and ``scores``, best first.

        Photos of one size go through the network together, of several sizes one size after the other: GroupNorm would
        take what pads a photo beside a larger one for the photo, and its boxes would depend on its neighbours.
        """
        sizes = own_sizes(placements)
        found: dict[int, Detection] = {}
        for height, width in dict.fromkeys(sizes):
            members = [index for index, size in enumerate(sizes) if size == (height, width)]
            own = [placements[index] for index in members]
            with placed(own):
                alike = self.detect_alike(
                    batch[members, :, :height, :width], own, min_score=min_score, nms=nms, max_detections=max_detections
                )
            found |= zip(members, alike, strict=True)
        return [found[index] for index in range(len(placements))]

    def detect_alike(
        self, batch: Tensor, placements: Sequence[Placement], *, min_score: float, nms: float, max_detections: int
    ) -> list[Detection]:
        """:meth:`detect` on photos of one size."""
        predictions = self.predict(self.trunk(batch.to(memory_format=torch.channels_last)))
        found = []
        for cls, boxes, iou, placement in zip(
            predictions.cls, predictions.boxes, predictions.iou, placements, strict=True
        ):
            best, label = _confidence(cls, iou[:, None]).max(dim=1)
            keep = best.topk(min(1000, len(best))).indices
            keep = keep[best[keep] > min_score]
            box = clip_boxes_to_image(on_photo(boxes[keep], placement), placement.size)
            chosen = batched_nms(box, best[keep], label[keep], nms)[:max_detections]
            index = keep[chosen]
            own = {"boxes": box[chosen], "labels": label[index], "index": index}
            found.append(own | _traces(cls, iou, boxes, placement, own))
        return found

    def repredict(self, batch: Tensor, placement: Placement, found: Detection) -> Detection:
        """The predictions of the same cells and classes on another pass."""
        seen = self.predict(self.trunk(batch.to(memory_format=torch.channels_last)))
        return _traces(seen.cls[0], seen.iou[0], seen.boxes[0], placement, found)

    def predict(self, maps: dict[str, Tensor]) -> Predictions:
        """Dense predictions from the trunk's maps (which may come from a cache)."""
        maps = self.fpn(maps)
        cls, boxes, iou, centres, level = [], [], [], [], []
        for index, stride in enumerate(STRIDES):
            head = self.heads[f"stride{stride}"]
            logits, raw, quality, offsets = head(maps[f"stride{stride}"])
            _, _, h, w = logits.shape
            # A cell's receptive field is centred on pixel stride · index, whose own centre lies half a pixel further.
            y, x = (torch.arange(size, device=logits.device) * stride + 0.5 for size in (h, w))
            centre = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(-1, 2)
            raw = None if raw is None else raw.flatten(2).transpose(1, 2).float()
            kernel = decode.seen(offsets, stride) if offsets else None
            boxes.append(
                decode.boxes(self.config.decode, centre, stride, raw, kernel, getattr(head, "log_scale", None))
            )
            cls.append(logits.flatten(2).transpose(1, 2).float())
            iou.append(quality.flatten(1).float())
            centres.append(centre)
            level.append(torch.full((h * w,), index, device=logits.device))
        return Predictions(
            torch.cat(cls, 1), torch.cat(boxes, 1), torch.cat(iou, 1), torch.cat(centres), torch.cat(level), maps
        )

    def losses(self, predictions: Predictions, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Focal, GIoU and IoU-branch losses.

        ``targets`` hold, an image, ``boxes`` (xyxy, network px), ``labels`` and, on wish, ``ignore`` (bool a box: its
        cells teach nothing, as for crowds and cut-off slivers).
        """
        assigned = [assign(predictions.centres, predictions.level, t) for t in targets]
        label = torch.stack([a[0] for a in assigned])
        box = torch.stack([a[1] for a in assigned])
        inside = label >= 0
        count = inside.sum().clamp(min=1)
        onehot = F.one_hot(label.clamp(min=0), predictions.cls.shape[-1]) * inside[..., None]
        focal = sigmoid_focal_loss(predictions.cls, onehot.to(predictions.cls.dtype))
        focal = (focal * (label > IGNORED)[..., None]).sum() / count
        found, truth = predictions.boxes[inside], box[inside]
        giou = generalized_box_iou_loss(found, truth, reduction="sum") / count
        with torch.no_grad():
            quality = _paired_iou(found, truth)
        iou = F.binary_cross_entropy_with_logits(predictions.iou[inside], quality, reduction="sum") / count
        return {"loss_cls": focal, "loss_box": giou, "loss_iou": iou}


def _confidence(cls: Tensor, iou: Tensor) -> Tensor:
    return (cls.sigmoid() * iou.sigmoid()).sqrt()


def on_photo(boxes: Tensor, placement: Placement) -> Tensor:
    """xyxy, network px, to photo px [d 4]."""
    return placement.to_photo(boxes.view(-1, 2).flip(-1)).flip(-1).view(-1, 4)


def _traces(cls: Tensor, iou: Tensor, boxes: Tensor, placement: Placement, found: Detection) -> Detection:
    """Scores and traces of the predictions that ``found`` names by ``index`` and ``labels``."""
    index = found["index"]
    logits, quality = cls[index, found["labels"]], iou[index]
    unclipped = on_photo(boxes[index], placement)
    return {"scores": _confidence(logits, quality), "logits": logits, "iou_logits": quality, "unclipped": unclipped}


def _share(own: nn.Module, other: nn.Module) -> None:
    """Give ``other`` the parameters of ``own``, a module of the same kind; capture still tells the modules apart."""
    for name, parameter in own.named_parameters():
        place, _, leaf = name.rpartition(".")
        setattr(other.get_submodule(place), leaf, parameter)


def own_sizes(placements: Sequence[Placement]) -> list[tuple[int, int]]:
    """(h, w), network px, of each photo in the network's input, padded as if it were alone there."""
    found = []
    for placement in placements:
        h, w = (
            -(-round(size * scale) // MULTIPLE) * MULTIPLE
            for size, scale in zip(placement.size, placement.scale, strict=True)
        )
        found.append((h, w))
    return found


def assign(centres: Tensor, level: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Each cell's label ([p], −1 background, −2 ignored) and box ([p 4]): the smallest box of its level around it."""
    boxes, labels = target["boxes"], target["labels"]
    if not len(boxes):
        return level.new_full(level.shape, BACKGROUND), centres.new_zeros(len(centres), 4)
    x, y = centres[:, None].unbind(-1)
    inside = (x > boxes[:, 0]) & (x < boxes[:, 2]) & (y > boxes[:, 1]) & (y < boxes[:, 3])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    low, high = centres.new_tensor(LEVEL_RANGES)[level].unbind(-1)
    size = area.sqrt()
    fits = inside & (size >= low[:, None]) & (size < high[:, None])
    smallest, index = torch.where(fits, area, torch.inf).min(dim=1)
    if "ignore" in target:
        labels = torch.where(target["ignore"], IGNORED, labels)
    return torch.where(smallest.isfinite(), labels[index], BACKGROUND), boxes[index]


def _paired_iou(a: Tensor, b: Tensor) -> Tensor:
    top, bottom = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    common = (bottom - top).clamp(min=0).prod(dim=1)
    both = (a[:, 2:] - a[:, :2]).prod(dim=1) + (b[:, 2:] - b[:, :2]).prod(dim=1)
    return common / (both - common).clamp(min=1e-6)
