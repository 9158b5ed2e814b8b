"""Cut recordings of two MMDetection runs to what the tests compare: python tools/cut_oracle.py RECORDINGS tests/oracle

RECORDINGS holds, for each of two thin detectors with random weights, its checkpoint and a file with everything that one
forward pass, one training step and (Faster R-CNN) four kinds of offsets gave, 17 MB each. Kept whole is what a stage is
tested on alone; of the rest, 1024 values of each tensor with its shape and standard deviation, or a digest.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

FILES = {"faster": "faster_rcnn_r50_fpn_dconv_c3-c5_tiny", "mask": "mask_rcnn_r50_fpn_mdconv_c3-c5_tiny"}
KEPT = 1024
WHOLE = ("base_anchors", "proposals", "roi_levels", "dets", "masks_area", "mask_logits/")


def sampled(name: str, values: torch.Tensor, random: np.random.Generator) -> dict[str, np.ndarray]:
    flat = values.flatten().numpy()
    index = np.sort(random.choice(len(flat), min(KEPT, len(flat)), replace=False)).astype(np.int32)
    spread = np.float32(values.std())
    return {name: flat[index], f"{name}#index": index, f"{name}#shape": np.array(values.shape), f"{name}#std": spread}


def forward(out: dict, random: np.random.Generator) -> dict[str, np.ndarray]:
    kept = {}
    for name, values in out.items():
        if name.startswith(("conv_offset_out", "C", "P")):
            kept |= sampled(name, values, random)
        elif name.startswith(("dconv_in", "dconv_out")):  # of the first photo
            kept[name] = values[:1].numpy()
        elif name.startswith(WHOLE):
            kept[name] = values.numpy()
        elif name.startswith("masks_rle"):
            kept[name] = np.array([rle["counts"] for rle in values])
            kept[f"{name}#size"] = np.array(values[0]["size"])
        elif name.startswith("anchors"):
            kept |= sampled(name, values, random)
    for level in range(4, 7):  # of the first photo: what the region proposal network is tested on
        kept[f"maps/P{level}"] = out[f"P{level}"][:1].numpy()
    for level in range(5):
        logits, deltas = out[f"rpn_cls/{level}"], out[f"rpn_bbox/{level}"]
        if level > 1:
            kept[f"rpn_of_maps/cls/{level}"], kept[f"rpn_of_maps/bbox/{level}"] = logits[:1].numpy(), deltas[:1].numpy()
        n, anchors, h, w = logits.shape
        flat = logits.permute(0, 2, 3, 1).reshape(n, -1)  # in the order of the anchors
        boxes = deltas.view(n, anchors, 4, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, 4)
        best = flat.topk(min(1100, flat.shape[1])).indices.sort(dim=1).values  # 1000 of them are looked at
        kept[f"rpn/{level}/shape"], kept[f"rpn/{level}/index"] = np.array([n, anchors, h, w]), best.int().numpy()
        kept[f"rpn/{level}/logits"] = flat.gather(1, best).numpy()
        kept[f"rpn/{level}/deltas"] = boxes.gather(1, best[..., None].expand(-1, -1, 4)).numpy()
    some = slice(None, None, 3)
    kept["roi_feats/indices"] = out["roi_feats/indices"][some].numpy()
    kept["roi_feats/values"] = out["roi_feats/values"][some].numpy()
    kept["roi_feats/values#std"] = out["roi_feats/values"].std().numpy()
    logits, deltas = out["rcnn/cls_score"], out["rcnn/bbox_pred"]
    found = (logits.softmax(dim=1)[:, :-1] > 0.04).any(dim=1).nonzero()[:, 0]  # the others are background
    others = torch.from_numpy(random.choice(len(logits), 10, replace=False))
    rois = torch.cat([found, others]).unique()
    kept |= {"rcnn/index": rois.numpy(), "rcnn/cls_score": logits[rois].numpy(), "rcnn/bbox_pred": deltas[rois].numpy()}
    kept |= {f"rcnn/{name}#std": out[f"rcnn/{name}"].std().numpy() for name in ("cls_score", "bbox_pred")}
    return kept


def training(train: dict) -> dict[str, np.ndarray]:
    kept = {}
    for name, value in train.items():
        if torch.is_tensor(value) and not name.endswith("max_overlaps"):
            kept[f"train/{name}"] = value.numpy() if value.dtype != torch.int64 else value.int().numpy()
        elif name.endswith("num_priors"):
            kept[f"train/{name}"] = np.array(value)
    kept["train/parameters"] = np.array(list(train["grad_norm"]))
    kept["train/grad_norm"] = np.array([np.nan if v is None else v for v in train["grad_norm"].values()])
    kept["train/requires_grad"] = np.array([train["requires_grad"][name] for name in train["grad_norm"]])
    return kept | {f"train/grads/{name}": value.numpy() for name, value in train["grads"].items()}


def main(source: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with np.load(source / "images.npz") as images:
        # The other photo is a sample of matplotlib's; this one was generated.
        Image.fromarray(images["img1_bgr"][..., ::-1]).save(out / "shapes.png", optimize=True)
        resized = [np.ascontiguousarray(images[f"img{i}_resized_bgr"][..., ::-1]) for i in (0, 1)]
    for short, name in FILES.items():
        # Own files, with records that only the full unpickler reads.
        recorded = torch.load(source / f"{name}.oracle.pt", weights_only=False)
        random = np.random.default_rng(0)
        kept = forward(recorded["outputs"], random) | training(recorded["train"])
        for key, value in (recorded["ablation"] or {}).items():
            kept |= {f"ablation/{key}": value.numpy()} if "dets" in key else sampled(f"ablation/{key}", value, random)
        meta = {"versions": {k: recorded["meta"][k] for k in ("mmdet", "mmcv", "torch", "torchvision", "cv2")}}
        meta["images"] = recorded["meta"]["img_metas"]
        meta["resized_sha256"] = [hashlib.sha256(image.tobytes()).hexdigest() for image in resized]
        meta["input_sha256"] = hashlib.sha256(recorded["input"].numpy().tobytes()).hexdigest()
        np.savez_compressed(out / f"{short}.npz", meta=np.array(json.dumps(meta)), **kept)
        shutil.copyfile(source / f"{name}.pth", out / f"{name}.pth")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
