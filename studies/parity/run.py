"""How close the detectors come to real MMDetection, and what that depends on: the table of docs/checkpoints.md.

Compares with recordings of MMDetection 3.3 (DEFORMSCOPE_SHARED/oracle), under several instruction sets, numbers of
threads and operators, each in a process of its own. A processor without AVX-512 sums in another order, and so does
another library; here they are asked to.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

FILES = {"faster": "faster_rcnn_r50_fpn_dconv_c3-c5_tiny", "mask": "mask_rcnn_r50_fpn_mdconv_c3-c5_tiny"}
INSTRUCTIONS = {
    "SSE4.1": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "AVX-512": {},
}
OPERATORS = ("deformscope's", "torchvision's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--one", nargs=2, metavar=("THREADS", "OPERATOR"), help="Print one setting's numbers as JSON.")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(int(arguments.one[0]), arguments.one[1])))
        return
    columns: dict[str, dict[str, float]] = {}
    for (name, environment), threads, operator in itertools.product(INSTRUCTIONS.items(), arguments.threads, OPERATORS):
        command = [sys.executable, __file__, "--one", str(threads), operator]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
        columns[f"{name}, {threads} threads, {operator}"] = json.loads(done.stdout)
    print("| stage | least | most | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * (len(columns) + 2))
    for stage in next(iter(columns.values())):
        values = [column[stage] for column in columns.values()]
        print(f"| {stage} | " + " | ".join(f"{value:.2g}" for value in (min(values), max(values), *values)) + " |")


def measured(threads: int, operator: str) -> dict[str, float]:
    """Largest differences, by stage, over both recordings."""
    import torch

    torch.set_num_threads(threads)
    from deformscope.detectors import deform

    if operator != OPERATORS[0]:
        import torchvision

        deform.deform_conv2d = torchvision.ops.deform_conv2d  # type: ignore[assignment]
    found: dict[str, float] = {}
    for key, name in FILES.items():
        for stage, value in _of_one(name, key == "mask").items():
            found[stage] = max(found.get(stage, 0.0), value)
    return found


def _of_one(name: str, masked: bool) -> dict[str, float]:
    import numpy as np
    import torch
    from faster_coco_eval.core import mask as coding
    from torchvision.ops import box_iou

    import deformscope
    from deformscope.detectors.detector import Batch
    from deformscope.detectors.rcnn.boxes import Sample
    from deformscope.detectors.rcnn.rcnn import Samples
    from deformscope.detectors.rcnn.roi import paste, pool, with_image
    from deformscope.fields.field import Placement

    folder = Path(os.environ["DEFORMSCOPE_SHARED"]) / "oracle"
    recorded: dict[str, Any] = torch.load(folder / f"{name}.oracle.pt", weights_only=False)  # our own file
    out, train = recorded["outputs"], recorded["train"]
    with np.load(folder / "images.npz") as images:
        photos = [np.ascontiguousarray(images[f"img{i}_bgr"][..., ::-1]) for i in (0, 1)]
    metas = recorded["meta"]["img_metas"]
    placements = [Placement(meta["ori_shape"], (meta["scale_factor"][1], meta["scale_factor"][0])) for meta in metas]
    detector: Any = deformscope.load(folder / f"{name}.pth", shorter_side=200, longer_side=320)

    def off(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one - other).abs().max() / other.std())

    found: dict[str, float] = {}
    with torch.inference_mode():
        found["input batch"] = float((detector.prepare(photos)[0] - recorded["input"]).abs().max())
        stages = detector.backbone(recorded["input"])
        for stage, value in enumerate(stages, start=2):
            found[f"C{stage}, in standard deviations"] = off(value, out[f"C{stage}"])
        maps = [out[f"P{i}"] for i in range(2, 7)]
        proposals = detector.rpn.propose(
            [out[f"rpn_cls/{i}"] for i in range(5)], [out[f"rpn_bbox/{i}"] for i in range(5)], placements
        )
        found["proposals from the recorded maps, px"] = max(
            _boxes_apart(one.boxes, one.scores, out[f"proposals/{i}/bboxes"], out[f"proposals/{i}/scores"])
            for i, one in enumerate(proposals)
        )
        features = pool(maps, out["rois"], 7)[out["roi_feats/indices"]]
        found["RoI features from the recorded RoIs"] = float((features - out["roi_feats/values"]).abs().max())
        logits, deltas = detector.box_predictions(maps, out["rois"])
        found["class logits and box deltas from the recorded RoIs"] = max(
            float((logits - out["rcnn/cls_score"]).abs().max()), float((deltas - out["rcnn/bbox_pred"]).abs().max())
        )
        truth = {}
        if masked:
            regions = [out[f"dets/{i}/bboxes"] for i in (0, 1)]
            predicted = detector.mask_predictions(maps, with_image(regions)).split([len(one) for one in regions])
            pixels = 0
            for i, placement in enumerate(placements):
                labels = out[f"dets_rescaled/{i}/labels"]
                own = predicted[i][torch.arange(len(labels)), labels].sigmoid()
                truth[i] = torch.from_numpy(np.stack([coding.decode(code) for code in out[f"masks_rle/{i}"]])).bool()
                pixels += int((paste(own, out[f"dets_rescaled/{i}/bboxes"], placement.size) != truth[i]).sum())
            found["masks from the recorded detections, px in all"] = pixels
    detections = detector(photos)
    apart = {"boxes, px": 0.0, "scores": 0.0, "missing or more": 0.0, "mask px in all": 0.0}
    for i, one in enumerate(detections):
        there = {key: out[f"dets_rescaled/{i}/{key}"] for key in ("bboxes", "scores", "labels")}
        overlap, match = (box_iou(there["bboxes"], one["boxes"]) * (there["labels"][:, None] == one["labels"])).max(
            dim=1
        )
        apart["missing or more"] += int((overlap < 0.99).sum()) + abs(len(match) - len(one["labels"]))
        apart["boxes, px"] = max(apart["boxes, px"], float((one["boxes"][match] - there["bboxes"]).abs().max()))
        apart["scores"] = max(apart["scores"], float((one["scores"][match] - there["scores"]).abs().max()))
        if masked:
            apart["mask px in all"] += int((one["masks"][match] != truth[i]).sum())
    found |= {f"end to end: {key}": value for key, value in apart.items()}

    names = {"boxes": "bboxes", "labels": "labels", "masks": "masks"}
    targets = [
        {ours: train[f"gt/{i}/{key}"] for ours, key in names.items() if f"gt/{i}/{key}" in train} for i in (0, 1)
    ]
    drawn = [
        [Sample(train[f"{group}/{i}/pos_inds"], train[f"{group}/{i}/neg_inds"]) for i in (0, 1)]
        for group in ("rpn_assign", "rcnn_assign")
    ]
    samples = Samples(*drawn, [train[f"train_proposals/{i}/bboxes"] for i in (0, 1)])
    losses = detector.train().losses(Batch(targets, recorded["input"], tuple(placements)), samples)
    found["losses, relative"] = max(
        abs(loss.item() / train[f"loss_sum/{name}"].item() - 1) for name, loss in losses.items()
    )
    sum(losses.values()).backward()
    from deformscope.detectors.checkpoints.mmdet import to_theirs

    norms = {to_theirs(name): p.grad for name, p in detector.named_parameters() if p.grad is not None}
    found["gradient norms, relative"] = max(
        abs(gradient.norm().item() / train["grad_norm"][name] - 1) for name, gradient in norms.items()
    )
    return found


def _boxes_apart(boxes: Any, scores: Any, other: Any, others: Any) -> float:
    """Between proposals in the same order: by score, and equal scores by place."""
    import numpy as np

    def ordered(boxes: Any, scores: Any) -> Any:
        return boxes[np.lexsort((boxes[:, 1].round(decimals=1), boxes[:, 0].round(decimals=1), -scores))]

    return float((ordered(boxes, scores) - ordered(other, others)).abs().max())


if __name__ == "__main__":
    main()
