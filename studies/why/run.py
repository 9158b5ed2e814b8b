"""Measure what docs/results/why.md tells of: what the offsets do for one prediction of the packaged detector.

    python studies/why/run.py modes DATA OUT.json --photos 150       # receptive fields and log-odds with parts of the offsets
    python studies/why/run.py occlusion DATA OUT.json --photos 24    # grey patches on the photo as a black-box null
    python studies/why/run.py table OUT.json...                      # their tables, as Markdown

DATA is a folder in COCO's layout; the faithfulness table is `deformscope faithfulness DATA`.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

import deformscope as ds
from deformscope.detectors.dense import DenseDetector
from deformscope.attribution import Attribution, Explanation
from deformscope.attribution.faithfulness import candidates
from deformscope.files import write_json
from deformscope.metrics import bootstrap
from deformscope.ops.intercept import Inputs, intercepting
from deformscope.score.passes import fresh_copy, probe
from deformscope.score.scenes import open_folder

MIN_SCORE = 0.3
MODES = ("full", "feature", "kernel", "none", "fresh")
NAMES = {"full": "full offsets", "feature": "only d_f", "kernel": "only d_k", "none": "none", "fresh": "fresh offsets"}
PATCH, STEP = 48, 32
"""Side of a grey patch and distance of its neighbours, network px."""
LAYERS = ("before.0", "deform")
"""Of a head, in the network's order."""


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    for name, function, photos in (("modes", modes, 150), ("occlusion", occlusion, 24)):
        one = commands.add_parser(name)
        one.add_argument("data", type=Path)
        one.add_argument("out", type=Path)
        one.add_argument("--photos", type=int, default=photos)
        one.set_defaults(run=lambda a, f=function: f(a.data, a.out, a.photos))
    shown = commands.add_parser("table")
    shown.add_argument("files", type=Path, nargs="+")
    shown.set_defaults(run=lambda a: print("\n\n".join(table(json.loads(file.read_text())) for file in a.files)))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.run(arguments)


def explained(detector: DenseDetector, data: Path, most: int) -> Iterator[tuple[str, Explanation]]:
    """The best detections of the first ``most`` photos that have one."""
    photos, count = open_folder(data), 0
    for index, image in enumerate(photos.images):
        array = photos.scene(index).photo
        if len(detector(array, min_score=MIN_SCORE, max_detections=1)[0]["boxes"]):
            yield image.file_name, ds.explain(detector, array, min_score=MIN_SCORE)
            count += 1
            if count == most:
                return


def modes(data: Path, out: Path, most: int) -> None:
    """The same prediction with all, with parts, and without the offsets; and where the kernel's points get it from."""
    detector = ds.load("packaged")
    others: dict[str, nn.Module] = {mode: ds.load("packaged", offset_mode=mode) for mode in MODES[1:4]}
    others["fresh"] = as_strong_fresh(detector, data)
    records = []
    for name, why in explained(detector, data, most):
        record: dict[str, Any] = {"photo": name, "class": why.label, "modes": {"full": of_field(why, why)}}
        for mode, other in others.items():
            record["modes"][mode] = of_field(ds.explain(other, why.photo, why.detection), why)
        record |= {"points": of_points(why), "cell": of_cell(detector, why)}
        records.append(record)
        print(len(records), name, flush=True)
    write_json(out, {"kind": "modes", "photos": records})


def as_strong_fresh(detector: DenseDetector, data: Path) -> nn.Module:
    """The detector with freshly drawn offset convolutions whose offsets are as long, root mean square, as its own."""
    fresh = fresh_copy(detector, probe(detector).convolutions)
    photos = open_folder(data)
    arrays = [photos.scene(index).photo for index in range(4)]

    def length(model: nn.Module, layer: str) -> float:
        squares = []
        for array in arrays:
            with ds.capture(model) as fields:
                model(array)
            squares += [field.offset.square().mean().item() for name, field in fields.items() if name.endswith(layer)]
        return float(np.sqrt(np.mean(squares)))

    for layer in LAYERS:  # the heads of all levels have the same weights
        convolution = fresh.get_submodule(f"heads.stride8.{layer}.conv_offset")
        factor = length(detector, layer) / length(fresh, layer)
        for parameter in convolution.parameters():
            parameter.data.mul_(factor)
    return fresh


def of_field(one: Explanation, full: Explanation) -> dict[str, float]:
    """The receptive field against the box that full offsets find, and the class's log-odds."""
    field, box = one.receptive_field, full.box
    assert box is not None
    root = float(((box[2] - box[0]) * (box[3] - box[1])) ** 0.5)
    return {
        "log_odds": one.value,
        "in_box": field.share_in(box),
        "over_chance": field.over_chance(box),
        "off_centre": field.off_centre(box),
        "radius_50": field.radius(0.5) / root,
        "radius_95": field.radius(0.95) / root,
    }


def of_points(why: Explanation) -> dict[str, Any]:
    """Attribution against nearness to the box's centre, in the cell's kernel and in the layer below."""
    found: dict[str, Any] = {}
    for depth, (name, layer) in enumerate(reversed(why.reached.items())):
        chosen = candidates(why, name).flatten()
        values = layer.points.flatten()[chosen].double().numpy()
        far, brought = distances(layer, why)
        far, brought = far[chosen.numpy()], brought[chosen.numpy()]
        total = np.abs(values).sum()
        found[str(depth)] = {
            "points": len(values),
            "spearman_near": float(spearmanr(values, -far).statistic),
            "spearman_brought": float(spearmanr(values, brought).statistic),
            "brought": float((brought > 0).mean()),
            "mean_brought": float(values[brought > 0].mean()) if (brought > 0).any() else float("nan"),
            "mean_taken": float(values[brought <= 0].mean()) if (brought <= 0).any() else float("nan"),
            "rings": [
                [float(inside.mean()), float(np.abs(values[inside]).sum() / total), float(values[inside].sum())]
                for inside in ((far < 0.25), (far >= 0.25) & (far < 0.5), (far >= 0.5) & (far < 0.75), far >= 0.75)
            ],
        }
    return found


def distances(layer: Attribution, why: Explanation) -> tuple[np.ndarray, np.ndarray]:
    """Of every sampling point, in √area: its distance from the box's centre, and how much nearer d_f brought it."""
    x0, y0, x1, y1 = why.box  # type: ignore[misc]
    centre, root = np.array([(y0 + y1) / 2, (x0 + x1) / 2]), ((x1 - x0) * (y1 - y0)) ** 0.5
    places = layer.places().double().numpy()
    d_f = ds.split(layer.field.offset)[0][0].double().numpy() * np.array(layer.field.pixels_per_cell())
    far = np.linalg.norm(places - centre, axis=-1) / root
    without = np.linalg.norm(places - d_f - centre, axis=-1) / root
    return far.ravel(), (without - far).ravel()


def of_cell(detector: DenseDetector, why: Explanation) -> dict[str, float]:
    """Log-odds when only the predicting cell loses a part of its offsets; and where its offsets want to go."""
    layer = why.layer()
    row, column = layer.strongest_cell()
    batch, placements = detector.prepare([why.photo])
    found = {}
    for mode in ("full", "feature", "kernel", "none"):

        def change(number: int, call: Inputs, mode: str = mode) -> Inputs:
            if number != layer.call or mode == "full":
                return call
            offset = call.offset.clone()
            own = offset[0, :, row, column].view(-1, 2)
            d_f = own.mean(dim=0, keepdim=True)
            part = {"feature": d_f.expand_as(own), "kernel": own - d_f, "none": torch.zeros_like(own)}[mode]
            offset[0, :, row, column] = part.reshape(-1)
            return call._replace(offset=offset)

        with torch.inference_mode(), intercepting(change):
            found[mode] = float(detector.repredict(batch, placements[0], why.detection)["logits"][0])
    x0, y0, x1, y1 = why.box  # type: ignore[misc]
    cell = layer.field.to_pixels(layer.field.centres())[row, column].double().numpy()
    d_f = ds.split(layer.field.offset)[0][0, 0, 0, row, column].double().numpy()
    aim = np.array([(y0 + y1) / 2, (x0 + x1) / 2]) - cell
    pull = layer.offset_gradient[:, :, row, column].sum(dim=(0, 1)).double().numpy()
    per_cell = np.array(layer.field.pixels_per_cell())
    found["cos_d_f"], found["cos_pull"] = cosine(d_f * per_cell, aim), cosine(pull / per_cell, aim)
    root = ((x1 - x0) * (y1 - y0)) ** 0.5
    found["off_before"] = float(np.linalg.norm(aim) / root)
    found["off_after"] = float(np.linalg.norm(aim - d_f * per_cell) / root)
    return found


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def occlusion(data: Path, out: Path, most: int) -> None:
    """Rank correlation of what a grey patch takes from the log-odds with what explanations say of its place."""
    detector = ds.load("packaged")
    records = []
    for name, why in explained(detector, data, most):
        drop, places = occluded(detector, why)
        says = {"receptive field": why.receptive_field.heatmap()}
        for depth, layer in enumerate(reversed(why.reached)):
            says[f"attribution, {'last layer' if depth == 0 else 'layer below'}"] = why.heatmap(layer, signed=True)
        x0, y0, x1, y1 = why.box  # type: ignore[misc]
        y, x = np.mgrid[: why.photo.shape[0], : why.photo.shape[1]] + 0.5  # type: ignore[union-attr]
        says["nearness to the box's centre"] = -np.hypot(y - (y0 + y1) / 2, x - (x0 + x1) / 2)
        says["share of the box"] = ((y >= y0) & (y <= y1) & (x >= x0) & (x <= x1)).astype(float)
        means = {key: [value[a:b, c:d].mean() for a, b, c, d in places] for key, value in says.items()}
        inside = np.array(means["share of the box"]) > 0
        record = {"photo": name, "class": why.label, "patches": len(drop), "largest": float(drop.max())}
        record["spearman"] = {key: float(spearmanr(drop, value).statistic) for key, value in means.items()}
        # Every map that knows where the object is agrees with the drop; inside the box it must know more than that.
        record["spearman_in_box"] = {
            key: float(spearmanr(drop[inside], np.array(value)[inside]).statistic) for key, value in means.items()
        }
        records.append(record)
        print(len(records), name, flush=True)
    write_json(out, {"kind": "occlusion", "photos": records})


def occluded(detector: DenseDetector, why: Explanation) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """What each patch takes from the log-odds of the same prediction, and its place (top, bottom, left, right) px."""
    batch, (placement,) = detector.prepare([why.photo])
    index, label = int(why.detection["index"][0]), int(why.detection["labels"][0])
    h, w = (round(size * scale) for size, scale in zip(placement.size, placement.scale, strict=True))
    corners = [(y, x) for y in range(0, h - STEP // 2, STEP) for x in range(0, w - STEP // 2, STEP)]
    logits = []
    with torch.inference_mode():
        for start in range(0, len(corners), 16):
            part = batch.repeat(len(corners[start : start + 16]), 1, 1, 1)
            for image, (y, x) in zip(part, corners[start : start + 16], strict=True):
                image[:, y : min(y + PATCH, h), x : min(x + PATCH, w)] = 0  # the mean colour
            predictions = detector.predict(detector.trunk(part.to(memory_format=torch.channels_last)))
            logits += predictions.cls[:, index, label].tolist()
    down, across = placement.scale
    places = [
        (round(y / down), round(min(y + PATCH, h) / down), round(x / across), round(min(x + PATCH, w) / across))
        for y, x in corners
    ]
    return why.value - np.array(logits), places


def table(result: dict[str, Any]) -> str:
    """The tables of one file."""
    records = result["photos"]
    weights = bootstrap.draws(len(records), 2000)

    def told(values: Sequence[float] | np.ndarray, digits: int = 2, sign: str = "") -> str:
        drawn = bootstrap.mean(np.array(values, dtype=float), weights)
        low, high = bootstrap.interval(drawn[1:])
        return f"{drawn[0]:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"

    lines = [f"{len(records)} photos.", ""]
    if result["kind"] == "occlusion":
        lines += ["| | all patches | patches on the box |", "|---|---|---|"]
        for key in records[0]["spearman"]:
            both = [told([r[kind][key] for r in records]) for kind in ("spearman", "spearman_in_box")]
            lines.append(f"| {key} | {both[0]} | {both[1]} |")
        gains = [
            told([r[kind]["receptive field"] - r[kind]["nearness to the box's centre"] for r in records], sign="+")
            for kind in ("spearman", "spearman_in_box")
        ]
        lines.append(f"| receptive field over nearness | {gains[0]} | {gains[1]} |")
        return "\n".join(lines)
    keys = ("log_odds", "in_box", "over_chance", "off_centre", "radius_50", "radius_95")
    lines += ["| offsets | " + " | ".join(keys) + " |", "|---|" + "---|" * len(keys)]
    for mode in MODES:
        cells = [told([r["modes"][mode][key] for r in records]) for key in keys]
        lines.append(f"| {NAMES[mode]} | {' | '.join(cells)} |")
    for mode in MODES[1:]:
        cells = [told([r["modes"][mode][key] - r["modes"]["full"][key] for r in records], 3, "+") for key in keys]
        lines.append(f"| {NAMES[mode]} − full | {' | '.join(cells)} |")
    for a, b in (("feature", "kernel"), ("feature", "none"), ("kernel", "none"), ("none", "fresh")):
        cells = [told([r["modes"][a][key] - r["modes"][b][key] for r in records], 3, "+") for key in keys]
        lines.append(f"| {NAMES[a]} − {NAMES[b]} | {' | '.join(cells)} |")
    for depth in ("0", "1"):
        lines += ["", f"layer {depth} from the output", ""]
        for key in ("points", "spearman_near", "spearman_brought", "brought", "mean_brought", "mean_taken"):
            lines.append(f"- {key}: {told([r['points'][depth][key] for r in records], 4)}")
        gap = [r["points"][depth]["mean_brought"] - r["points"][depth]["mean_taken"] for r in records]
        lines.append(f"- mean_brought − mean_taken: {told(gap, 4, '+')}")
        for ring, name in enumerate(("< .25", ".25 to .5", ".5 to .75", "≥ .75")):
            shares = [told([r["points"][depth]["rings"][ring][column] for r in records], 3) for column in range(3)]
            lines.append(f"- {name} √area: points {shares[0]}, |a| {shares[1]}, sum {shares[2]}")
    lines += ["", "the predicting cell alone", ""]
    for key in records[0]["cell"]:
        lines.append(f"- {key}: {told([r['cell'][key] for r in records], 3)}")
    off = np.array([r["cell"]["off_before"] for r in records])
    for mode in ("feature", "kernel", "none"):
        lost = np.array([r["cell"][mode] - r["cell"]["full"] for r in records])
        lines.append(f"- {mode} − full: {told(lost, 3, '+')}")
        for name, chosen in (("nearer than .25 √area", off < 0.25), ("farther", off >= 0.25)):
            lines.append(f"  - cells {name} ({chosen.sum()}): {told(np.where(chosen, lost, np.nan), 3, '+')}")
        drawn = [spearmanr(*np.repeat([off, -lost], w.astype(int), axis=1)).statistic for w in weights[:500]]
        low, high = bootstrap.interval(np.array(drawn[1:]))
        lines.append(f"  - Spearman of the loss with the distance: {drawn[0]:.2f} [{low:.2f}, {high:.2f}]")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
