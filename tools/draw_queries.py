"""Draw the picture of docs/transformers.md: a trained detector's object queries on scikit-image's photo of a cup.

The detector is DEIMv2 Femto, of the folder attention/ in shared/ beside the checkout, or at DEFORMSCOPE_SHARED, as for
the tests.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import skimage.data
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.ops import box_convert

from deformscope import adapt, analyse, draw
from deformscope.detectors.detector import Detector

SHARED = Path(os.environ.get("DEFORMSCOPE_SHARED", Path(__file__).parents[1] / "shared"))
CUP = Path(skimage.data.__file__).parent / "coffee.png"
ROWS = 3


def missing() -> str:
    """What the picture needs and is not there; empty, if it can be drawn."""
    if not (SHARED / "attention" / "deimv2.py").is_file():
        return f"no {SHARED / 'attention'} with a trained detector (DEFORMSCOPE_SHARED names its folder)"
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed"
    return ""


def queries() -> Figure:
    """The queries of the best detections by decoder layers."""
    analysis = analyse(detector(), CUP)
    scores, labels = (analysis.detection[key].tolist()[:ROWS] for key in ("scores", "labels"))
    titles = [f"{analysis.class_names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    boxes = analysis.detection["boxes"][:ROWS].tolist()
    return draw.queries(analysis.decoder, analysis.photo, analysis.queries()[:ROWS], titles=titles, boxes=boxes)


def detector(name: str = "femto") -> Detector:
    """The trained network, which sees photos squeezed to a square."""
    sys.path.insert(0, str(SHARED / "attention"))
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        deimv2 = importlib.import_module("deimv2")
    finally:
        sys.path.pop(0)
        sys.dont_write_bytecode = before
    network, size = deimv2.load(name)

    def prepare(photos: list[np.ndarray]) -> Tensor:
        return torch.cat([deimv2.prepare(photo, size) for photo in photos])

    def decode(output, batch):
        return [
            {"boxes": box_convert(boxes, "cxcywh", "xyxy") * size, "scores": logits.sigmoid().amax(1),
             "labels": logits.argmax(1), "query": torch.arange(len(boxes))}
            for boxes, logits in zip(output.pred_boxes, output.logits, strict=True)
        ]  # fmt: skip

    names = [one for one in FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"] if one not in NO_CLASS]
    return adapt(
        Pixels(network), prepare=prepare, decode=decode, class_names=names, name=f"DEIMv2 {name}", fit="stretch"
    )


NO_CLASS = ("__background__", "N/A")


class Pixels(torch.nn.Module):
    """A network of transformers, called without keywords."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor):
        return self.network(pixel_values=pixels)


def save(path: Path) -> None:
    """The picture as a file, as small as it goes."""
    draw.save(queries(), path, dpi=100)
    with Image.open(path) as picture:
        picture.convert("RGB").save(path, optimize=True)


if __name__ == "__main__":
    if missing():
        sys.exit(f"draw_queries: {missing()}")
    save(Path(sys.argv[1]))
