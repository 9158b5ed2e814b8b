"""What the code of the documentation finds when it runs: a folder with photos, annotations and a checkpoint, and the
reader's own names (``model``, ``images``, ``loader`` …)."""

import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import queries_network
import skimage.data
import torch
import torchvision
from pages import ROOT
from PIL import Image
from torch import nn

import deformscope

PHOTOS = Path(skimage.data.__file__).parent
CHECKPOINT = "faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco.pth"


def folder(root: Path) -> None:
    """``photo.jpg`` (a cat), ``folder/`` and ``DATA/``, annotated photos of it in COCO's layout."""
    cat = Image.open(PHOTOS / "chelsea.png").convert("RGB")
    (root / "folder").mkdir()
    cat.save(root / "photo.jpg", quality=95)
    cat.save(root / "cat.png")
    shutil.copyfile(ROOT / "docs" / "photos" / "meadow.jpg", root / "meadow.jpg")
    for name in ("astronaut", "coffee"):
        Image.open(PHOTOS / f"{name}.png").convert("RGB").resize((240, 180)).save(root / "folder" / f"{name}.jpg")
    (root / "DATA" / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / "DATA" / split).mkdir()
        images, objects = [], []
        for number, left in enumerate((0, 60, 120)):
            cat.crop((left, 0, left + 300, 300)).save(root / "DATA" / split / f"{number}.jpg")
            images.append({"id": number, "file_name": f"{number}.jpg", "height": 300, "width": 300})
            x0, x1 = max(70 - left, 0), min(360 - left, 300)
            outline = [x0, 20, x1, 20, x1, 260, x0, 260]
            box = [x0, 20, x1 - x0, 240]
            objects.append({"id": number + 1, "image_id": number, "category_id": 1, "bbox": box, "iscrowd": 0})
            objects[-1] |= {"area": box[2] * box[3], "segmentation": [outline]}
        content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}
        (root / "DATA" / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def checkpoint(path: Path) -> None:
    """A thin Faster R-CNN with deformable convolutions, in MMDetection's format, with random weights."""
    from deformscope.detectors.checkpoints.mmdet import to_theirs
    from deformscope.detectors.rcnn.config import RCNNConfig, coco_class_names
    from deformscope.detectors.rcnn.rcnn import RCNN

    torch.manual_seed(0)
    thin = {"stem_channels": 12, "base_channels": 8, "fpn_channels": 16, "head_channels": 20}
    detector = RCNN(RCNNConfig(coco_class_names(), **thin))
    for name, value in detector.state_dict().items():
        if "conv_offset" in name:
            nn.init.normal_(value, std=0.05)
    torch.save({"state_dict": OrderedDict((to_theirs(k), v) for k, v in detector.state_dict().items())}, path)


class Classifier(nn.Module):
    """A reader's model: torchvision's deformable convolution in a layer named ``layer4``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=8, padding=1)
        self.layer4 = nn.ModuleDict(
            {"conv_offset": nn.Conv2d(8, 18, 3, padding=1), "conv": torchvision.ops.DeformConv2d(8, 8, 3, padding=1)}
        )
        self.head = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.stem(images).relu()
        x = self.layer4["conv"](x, self.layer4["conv_offset"](x)).relu()
        return {"logits": self.head(x.mean(dim=(2, 3)))}


def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier()


def detr() -> nn.Module:
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

    torch.manual_seed(0)
    trunk = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    config = DeformableDetrConfig(
        use_timm_backbone=False,
        backbone_config=trunk,
        use_pretrained_backbone=False,
        backbone=None,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=10,
        with_box_refine=True,
        two_stage=True,
        num_feature_levels=4,
    )
    return DeformableDetrForObjectDetection(config).eval()


def image_processor() -> Any:
    from transformers import DeformableDetrImageProcessor

    return DeformableDetrImageProcessor(size={"shortest_edge": 150, "longest_edge": 226})


def small() -> nn.Module:
    """The packaged detector's architecture, thin, with random weights, for photos of 96 px."""
    from deformscope.detectors.dense.config import DenseConfig
    from deformscope.detectors.dense.dense import DenseDetector

    torch.manual_seed(0)
    detector = DenseDetector(DenseConfig(("cat", "dog"), channels=16, shorter_side=96, longer_side=96), "small")
    for head in detector.heads.values():
        nn.init.normal_(head.deform.conv_offset.weight, std=0.1)
    return detector.eval()


@cache
def packaged() -> nn.Module:
    return deformscope.load("packaged")


def writer() -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(Path("tensorboard").absolute())


def captured() -> Any:
    return deformscope.analyse(packaged(), "photo.jpg").fields


def images(height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


BOXES = [{"boxes": torch.tensor([[8.0, 8, 56, 40]]), "labels": torch.tensor([0])} for _ in range(2)]
NAMES: dict[str, Callable[[], Any]] = {
    "ds": lambda: deformscope,
    "torch": lambda: torch,
    "np": lambda: np,
    "detector": packaged,
    "model": classifier,
    "images": images,
    "batch": images,
    "targets": lambda: BOXES,
    "loader": lambda: [(images(), BOXES)],
    "criterion": lambda: lambda output, targets: output["logits"].square().mean(),
    "image": lambda: torch.from_numpy(deformscope.photo.read("photo.jpg")).permute(2, 0, 1)[None] / 255,
    "photo": lambda: deformscope.photo.read("photo.jpg"),
    "photos": lambda: ["photo.jpg", "folder/coffee.jpg"],
    "fields": captured,
    "field": lambda: captured()["heads.stride16.deform"],
    "writer": writer,
    "step": lambda: 0,
    "pixels": lambda: images(120, 160),
}
"""What a reader has under these names, made where a page uses it without saying where it comes from."""
ON_PAGES: dict[str, dict[str, Callable[[], Any]]] = {
    "docs/checkpoints.md": {"photos": lambda: [deformscope.photo.read("photo.jpg")] * 2},
    "docs/score.md": {"detector": small},
    "docs/tutorials/claims.md": {"detector": small},
    "docs/api/fields.md": {"model": detr},
    "docs/api/draw.md": {"model": detr, "pixels": lambda: images(150, 226)},
    "docs/api/score.md": {"detector": small},
    "docs/samplers.md": {"model": detr},
    "docs/transformers.md": {"model": detr, "image_processor": image_processor},
    "docs/api/detectors.md": {"transformers_model": detr, "image_processor": image_processor},
    "docs/own_models.md": {
        "network": queries_network.Queries,
        "prepare": lambda: queries_network.prepare,
        "decode": lambda: queries_network.decode,
    },
    "docs/explain.md": {"images": lambda: images()[:1]},
}
"""Where a page means something more special by a name."""
