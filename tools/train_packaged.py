"""Train the packaged detector: cache the frozen trunk's maps of several views a photo, then train pyramid and heads.

    python tools/train_packaged.py --data VOC_ANIMALS --trunk MOBILENETV2.pt --out runs/packaged --steps 12000

Checkpoints every 500 steps; the same command goes on where it was broken off.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from deformscope.detectors.one_stage import MEAN, STD, OneStageConfig, OneStageDetector
from deformscope.detectors.packaged import save

CANVAS = (256, 320)
HELD_OUT = 200
"""The last photos of the training split, on which recipes are compared; val is for the final figure."""


def load_annotations(path: Path) -> tuple[list[dict], dict[int, list[dict]], list[str]]:
    data = json.loads(path.read_text())
    boxes = defaultdict(list)
    for a in data["annotations"]:
        boxes[a["image_id"]].append(a)
    names = [c["name"] for c in sorted(data["categories"], key=lambda c: c["id"])]
    return sorted(data["images"], key=lambda i: i["id"]), boxes, names


def load_trunk(network: OneStageDetector, path: Path) -> None:
    """The 312 tensors of the published file map by order onto torchvision's MobileNetV2."""
    published = torch.load(path, map_location="cpu", weights_only=True)
    published = published.get("state_dict", published)
    own = network.trunk.state_dict()
    for (name, tensor), (_, value) in zip(own.items(), published.items(), strict=False):
        assert tensor.shape == value.shape, name
    network.trunk.load_state_dict(dict(zip(own, published.values(), strict=False)))


class Views:
    """Random views of annotated photos: scaled, cropped or shifted on a canvas, alone or four in a mosaic."""

    def __init__(self, folder: Path, images: list[dict], boxes: dict[int, list[dict]], seed: int) -> None:
        self.folder, self.images, self.boxes = folder, images, boxes
        self.random = random.Random(seed)
        self.photos = [Image.open(folder / i["file_name"]).convert("RGB") for i in tqdm(images, desc="photos")]

    def place(self, index: int, canvas: Image.Image, window: tuple[int, int, int, int], low: float, high: float):
        """Put photo ``index`` at a random scale and shift into ``window``; its boxes (xyxy, label, ignore)."""
        photo, record, draw = self.photos[index], self.images[index], self.random
        left, top, right, bottom = window
        fit = min((right - left) / photo.width, (bottom - top) / photo.height)
        scale = fit * np.exp(draw.uniform(np.log(low), np.log(high)))
        width, height = max(8, round(photo.width * scale)), max(8, round(photo.height * scale))
        flipped = draw.random() < 0.5
        image = photo.resize((width, height), Image.Resampling.BILINEAR)
        if flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = draw.uniform(min(0, right - left - width), max(0, right - left - width))
        y = draw.uniform(min(0, bottom - top - height), max(0, bottom - top - height))
        crop = Image.new("RGB", (right - left, bottom - top), (124, 116, 104))
        crop.paste(image, (round(x), round(y)))
        canvas.paste(crop, (left, top))
        found = []
        for a in self.boxes[record["id"]]:
            bx, by, bw, bh = (v * scale for v in a["bbox"])
            if flipped:
                bx = width - bx - bw
            box = np.array([bx + round(x), by + round(y), bx + bw + round(x), by + bh + round(y)])
            clipped = np.clip(box, 0, [right - left, bottom - top] * 2)
            kept = np.prod(clipped[2:] - clipped[:2]) / max(bw * bh, 1e-6)
            if kept > 0.1 and min(clipped[2:] - clipped[:2]) > 3:
                # A sliver of an object is no example of it.
                ignore = bool(a["iscrowd"]) or kept < 0.35
                found.append((*(clipped + np.array([left, top] * 2)), a["category_id"] - 1, ignore))
        return found

    def view(self, index: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
        height, width = CANVAS
        canvas = Image.new("RGB", (width, height), (124, 116, 104))
        if kind == "whole":
            found = self.place(index, canvas, (0, 0, width, height), 0.8, 1.25)
        elif kind == "crop":
            found = self.place(index, canvas, (0, 0, width, height), 0.5, 2.2)
        else:
            x, y = self.random.randint(width // 4, 3 * width // 4), self.random.randint(height // 4, 3 * height // 4)
            windows = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
            others = [index] + [self.random.randrange(len(self.photos)) for _ in range(3)]
            found = [
                b for i, window in zip(others, windows, strict=True) for b in self.place(i, canvas, window, 0.9, 1.8)
            ]
        return np.asarray(canvas), np.array(found, dtype=np.float32).reshape(-1, 6)


def cache_views(network: OneStageDetector, views: Views, kinds: list[str], path: Path) -> dict:
    """The trunk's maps of every view, fp16, and its boxes; kept beside the run so that a second start is quick."""
    if path.exists():
        return torch.load(path, weights_only=True, mmap=True)
    jobs = [(i, kind) for kind in kinds for i in range(len(views.images))]
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    maps = {}
    boxes = []
    trunk = network.trunk.to(memory_format=torch.channels_last)
    for start in tqdm(range(0, len(jobs), 16), desc="trunk"):
        images = []
        for index, kind in jobs[start : start + 16]:
            image, found = views.view(index, kind)
            images.append((torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 - mean) / std)
            boxes.append(torch.from_numpy(found))
        with torch.inference_mode():
            for name, value in trunk(torch.stack(images).contiguous(memory_format=torch.channels_last)).items():
                if name not in maps:
                    maps[name] = torch.empty(len(jobs), *value.shape[1:], dtype=torch.float16)
                maps[name][start : start + len(value)] = value.half()
    cache = {"maps": maps, "boxes": boxes}
    torch.save(cache, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)
    return cache


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trunk", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--views", default="whole,whole,crop,crop,mosaic,mosaic")
    parser.add_argument("--offset-mode", default="full")
    parser.add_argument("--modulated", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    images, boxes, names = load_annotations(args.data / "annotations/instances_train.json")
    config = OneStageConfig(tuple(names), offset_mode=args.offset_mode, modulated=args.modulated)
    network = OneStageDetector(config).train()
    load_trunk(network, args.trunk)
    path = args.cache or args.out / "views.pt"
    views = None if path.exists() else Views(args.data / "train", images[:-HELD_OUT], boxes, seed=1)
    cache = cache_views(network, views, args.views.split(","), path)
    count = len(cache["boxes"])
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.05, div_factor=20)
    state, first = args.out / "state.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        first = saved["step"]
    log = (args.out / "log.jsonl").open("a")
    began, running = time.time(), defaultdict(float)
    for step in tqdm(range(first, args.steps), initial=first, total=args.steps, mininterval=30):
        chosen = torch.from_numpy(np.random.default_rng([args.seed, step]).integers(0, count, args.batch))
        maps = {name: value[chosen].float() for name, value in cache["maps"].items()}
        found = [cache["boxes"][i] for i in chosen.tolist()]
        targets = [{"boxes": f[:, :4], "labels": f[:, 4].long(), "ignore": f[:, 5] > 0} for f in found]
        losses = network.losses(network.predict(maps), targets)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        schedule.step()
        for name, value in losses.items():
            running[name] += value.item() / 100
        if (step + 1) % 100 == 0:
            log.write(json.dumps({"step": step + 1, "seconds": round(time.time() - began, 1), **running}) + "\n")
            log.flush()
            running.clear()
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            kept = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(kept | {"schedule": schedule.state_dict(), "step": step + 1}, state.with_suffix(".tmp"))
            state.with_suffix(".tmp").rename(state)
    save(network, args.out / "packaged.safetensors")


if __name__ == "__main__":
    main()
