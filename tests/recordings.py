"""Numbers of real MMDetection runs of two thin detectors with random weights, cut to what the tests compare."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deformscope.detectors import zoo
from deformscope.detectors.rcnn.rcnn import RCNN
from deformscope.fields.field import Placement

FOLDER = Path(__file__).parent / "oracle"
FILES = {"faster": "faster_rcnn_r50_fpn_dconv_c3-c5_tiny", "mask": "mask_rcnn_r50_fpn_mdconv_c3-c5_tiny"}


def digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


@dataclass(frozen=True)
class Recording:
    """One recorded run: version 1 in a Faster R-CNN (``faster``) or version 2 in a Mask R-CNN (``mask``)."""

    path: Path
    photos: list[np.ndarray] = field(repr=False)
    numbers: dict[str, np.ndarray] = field(repr=False)

    @classmethod
    def read(cls, name: str) -> "Recording":
        with np.load(FOLDER / f"{name}.npz") as file:
            return cls(FOLDER / f"{FILES[name]}.pth", photos(), dict(file))

    def __getitem__(self, name: str) -> torch.Tensor:
        found = torch.from_numpy(self.numbers[name])
        return found.long() if found.dtype == torch.int32 else found  # indices are kept in fewer bits

    def __contains__(self, name: str) -> bool:
        return name in self.numbers

    def off(self, name: str, found: torch.Tensor) -> float:
        """Largest difference from what was recorded, in standard deviations of it; a part may have been kept only."""
        recorded, spread = self[name], self.numbers.get(f"{name}#std")
        if f"{name}#index" in self:
            assert list(found.shape) == self.numbers[f"{name}#shape"].tolist()
            found = found.flatten()[self[f"{name}#index"]]
        assert found.shape == recorded.shape
        return float((found - recorded).abs().max() / (recorded.std() if spread is None else spread.item()))

    @cached_property
    def meta(self) -> dict:
        return json.loads(self.numbers["meta"].item())

    @cached_property
    def batch(self) -> torch.Tensor:
        """What the network gets for the photos; that it is what was recorded is a test of its own."""
        return self.load().prepare(self.photos)[0]

    def rpn(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Logits and box deltas of the region proposals; the anchors that play no part have the smallest logits."""
        logits, deltas = [], []
        for level in range(5):
            n, a, h, w = self.numbers[f"rpn/{level}/shape"].tolist()
            index = self[f"rpn/{level}/index"]
            scores = torch.full((n, h * w * a), -100.0).scatter(1, index, self[f"rpn/{level}/logits"])
            boxes = torch.zeros(n, h * w * a, 4)
            boxes.scatter_(1, index[..., None].expand(-1, -1, 4), self[f"rpn/{level}/deltas"])
            logits.append(scores.view(n, h, w, a).permute(0, 3, 1, 2))
            deltas.append(boxes.view(n, h, w, a, 4).permute(0, 3, 4, 1, 2).flatten(1, 2))
        return logits, deltas

    def heads(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits and box deltas of all proposals; those that play no part are background."""
        index, total = self["rcnn/index"], sum(len(self[f"proposals/{image}/bboxes"]) for image in (0, 1))
        logits = torch.cat([torch.zeros(total, 80), torch.full((total, 1), 50.0)], dim=1)
        logits[index] = self["rcnn/cls_score"]
        deltas = torch.zeros(total, 320)
        deltas[index] = self["rcnn/bbox_pred"]
        return logits, deltas

    def masks(self, image: int) -> torch.Tensor:
        """Masks of a photo's detections."""
        from faster_coco_eval.core import mask

        size = self.numbers[f"masks_rle/{image}#size"].tolist()
        counts = self.numbers[f"masks_rle/{image}"].tolist()
        return torch.from_numpy(np.stack([mask.decode({"size": size, "counts": one}) for one in counts])).bool()

    def sizes(self, name: str) -> list[tuple[int, int]]:
        return [tuple(image[name]) for image in self.meta["images"]]

    @property
    def placements(self) -> list[Placement]:
        """Their scale factors are (width, height)."""
        scales = [image["scale_factor"][::-1] for image in self.meta["images"]]
        return [Placement(size, tuple(scale)) for size, scale in zip(self.sizes("ori_shape"), scales, strict=True)]

    def load(self, **settings) -> RCNN:
        return zoo.load(self.path, shorter_side=200, longer_side=320, **settings)


def photos() -> list[np.ndarray]:
    """A public-domain photo that matplotlib brings along, 600 × 512 px, and a generated one, 375 × 500 px."""
    import matplotlib

    found = []
    for path in (Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg", FOLDER / "shapes.png"):
        with Image.open(path) as image:
            found.append(np.asarray(image.convert("RGB")))
    return found
