"""Measure the paper's claims on the object queries of a detector: docs/results/attention.md.

    python studies/attention/measure.py collect --detector python:module:factory DATA --split val --name NAME --out FOLDER
    python studies/attention/measure.py tables FOLDER

``collect`` matches detections to annotated objects (same class, IoU at least 0.5, the best score first) and keeps, for
each matched query and decoder layer, what its points say beside nulls; ``tables`` makes means, correlations and their
95 % intervals over photos of all collected files, and writes results.json, of which the documentation makes tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

import deformscope
from deformscope.recording.capture import capture
from deformscope.datasets.coco import read_coco
from deformscope.datasets.records import CocoPhoto
from deformscope.fields.attention import AttentionField
from deformscope.fields.attention_start import fresh
from deformscope.files import write_json, write_text
from deformscope.metrics import bootstrap
from deformscope.terminal.progress import ProgressBar

OTHER_NAMES = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "diningtable": "dining table",
    "pottedplant": "potted plant",
    "tvmonitor": "tv",
}
"""Pascal VOC's names and COCO's."""
MATCHED, DRAWS = 0.5, 1000
SOURCES = ("points", "uniform", "shuffled", "fresh", "reference")
"""The query's own points with their weights; with equal weights; those of another matched query on this query's box; as
freshly initialised modules have them; the reference box itself, evenly filled."""


def collect(detector: Any, photos: Sequence[CocoPhoto], names: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """A record for each matched object: its box, and for each layer and source what is measured."""
    matched: list[dict[str, Any]] = []
    with ProgressBar(detector.name, len(photos)) as bar:
        for number, photo in enumerate(photos):
            matched += _matched(detector, photo, number, names)
            bar.advance()
    random = np.random.default_rng(seed)
    records = []
    for number, one in enumerate(matched):
        others = [k for k, other in enumerate(matched) if other["photo"] != one["photo"]]
        other = matched[int(random.choice(others))] if others else None
        records.append(_record(one, other, photos[matched[number]["photo"]]))
    return records


def _matched(detector: Any, photo: CocoPhoto, number: int, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The objects of a photo that are detected, with the samples of the query that did."""
    with capture(detector) as fields:
        found = detector(photo.read(), min_score=0.05)[0]
    decoder = [(field, fresh(field)) for field in fields.attention.values() if not field.is_dense]
    free = {index: np.array(photo.corners(one)) for index, one in enumerate(photo.objects) if not one.ignored}
    boxes, queries = found["boxes"].double().cpu().numpy(), found["query"].tolist()
    for box, label, query in zip(boxes, found["labels"].tolist(), queries, strict=True):
        name = detector.class_names[label]
        same = {k: iou(box, b) for k, b in free.items() if _same(names[photo.objects[k].label], name)}
        best = max(same, key=lambda k: same[k], default=None)
        if best is None or same[best] < MATCHED:
            continue
        x0, y0, x1, y1 = free.pop(best)
        layers = [samples(field, start, query) for field, start in decoder]
        yield {"photo": number, "object": best, "box": np.array([y0, x0, y1, x1]), "layers": layers}


def _same(annotated: str, detected: str) -> bool:
    return OTHER_NAMES.get(annotated, annotated) == detected


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Of two boxes xyxy."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    both = float(np.prod(np.maximum(sides, 0)))
    return both / max(float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])) - both, 1e-9)


def samples(field: AttentionField, start: AttentionField, query: int) -> dict[str, np.ndarray]:
    """A query's reference box (top, left, bottom, right, photo px), its points in units of that box (−0.5 to 0.5 inside
    it) and their weights, and the points of the fresh module, ``start``, in the same units."""
    y, x, height, width = field.reference[0, query].double().tolist()
    corners = field.points.new_tensor([[y - height / 2, x - width / 2], [y + height / 2, x + width / 2]])
    box = field.to_pixels(corners).double().cpu().numpy()
    size = np.maximum(box[1] - box[0], 1e-6)

    def in_box(one: AttentionField) -> np.ndarray:
        points = one.to_pixels(one.points[0, query]).double().cpu().numpy().reshape(-1, 2)
        return (points - box.mean(axis=0)) / size

    assert field.weights is not None
    weights = field.weights[0, query].double().cpu().numpy().ravel()
    return {"box": box.ravel(), "points": in_box(field), "weights": weights / weights.sum(), "fresh": in_box(start)}


def _record(one: dict[str, Any], other: dict[str, Any] | None, photo: CocoPhoto) -> dict[str, Any]:
    mask = photo.mask(photo.objects[one["object"]])
    layers = []
    for number, layer in enumerate(one["layers"]):
        equal = np.full(len(layer["weights"]), 1 / len(layer["weights"]))
        chosen = {
            "points": (layer["points"], layer["weights"]),
            "uniform": (layer["points"], equal),
            "fresh": (layer["fresh"], equal),
        }
        if other is not None:
            chosen["shuffled"] = other["layers"][number]["points"], other["layers"][number]["weights"]
        box = layer["box"]
        size, middle = box[2:] - box[:2], (box[:2] + box[2:]) / 2
        told = {
            source: measured(points * size + middle, weights, one["box"], mask)
            for source, (points, weights) in chosen.items()
        }
        told["reference"] = evenly(box, one["box"], mask)
        layers.append({"reference": [*middle, *size], "sources": told})
    centroid = None if mask is None or not mask.any() else [float(axis.mean()) + 0.5 for axis in np.nonzero(mask)]
    area = float(np.prod(one["box"][2:] - one["box"][:2])) if mask is None else float(mask.sum())
    return {
        "photo": one["photo"],
        "box": one["box"].tolist(),
        "centroid": centroid,
        "share_of_photo": area / (photo.size[0] * photo.size[1]),
        "layers": layers,
    }


def measured(points: np.ndarray, weights: np.ndarray, box: np.ndarray, mask: np.ndarray | None) -> dict[str, Any]:
    """Weighted mean and radius of points (y, x), photo px, and the share of the weight in the object's box and mask."""
    mean = (weights[:, None] * points).sum(axis=0)
    spread = np.sqrt((weights[:, None] * (points - mean) ** 2).sum(axis=0))
    inside = ((points >= box[:2]) & (points <= box[2:])).all(axis=1)
    found = {"mean": mean.tolist(), "radius": float(2 * np.sqrt(spread.prod())), "box": float(weights[inside].sum())}
    if mask is not None:
        cells = np.floor(points).astype(int)
        on = ((cells >= 0) & (cells < mask.shape)).all(axis=1)
        hit = np.zeros(len(points), dtype=bool)
        hit[on] = mask[cells[on, 0], cells[on, 1]]
        found["mask"] = float(weights[hit].sum())
    return found


def evenly(reference: np.ndarray, box: np.ndarray, mask: np.ndarray | None) -> dict[str, Any]:
    """The same of the reference box, if all of it had equal weight."""
    size = np.maximum(reference[2:] - reference[:2], 1e-6)
    common = np.maximum(np.minimum(reference[2:], box[2:]) - np.maximum(reference[:2], box[:2]), 0)
    found = {
        "mean": ((reference[:2] + reference[2:]) / 2).tolist(),
        "radius": float(2 * np.sqrt(size.prod() / 12)),
        "box": float(common.prod() / size.prod()),
    }
    if mask is not None:
        y0, x0, y1, x1 = np.rint(reference).astype(int).clip(0)
        found["mask"] = float(mask[y0:y1, x0:x1].sum() / size.prod())
    return found


class Objects:
    """Collected objects as arrays, and the bootstrap's weights of each (photos are drawn, not objects)."""

    def __init__(self, records: Sequence[dict[str, Any]], photos: int) -> None:
        self.records = records
        self.boxes = np.array([one["box"] for one in records])
        self.size = np.sqrt((self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1))
        self.centre = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        self.centroid = np.array([one["centroid"] or [np.nan, np.nan] for one in records])
        self.chance = np.array([one["share_of_photo"] for one in records])
        self.draws = bootstrap.draws(photos, DRAWS)[:, [one["photo"] for one in records]]

    def of(self, layer: int, source: str, key: str) -> np.ndarray:
        """A measure of all objects; NaN where there is none."""
        told = [one["layers"][layer]["sources"].get(source, {}) for one in self.records]
        return np.array([one.get(key, [np.nan, np.nan] if key == "mean" else np.nan) for one in told])

    def reference(self, layer: int) -> np.ndarray:
        """[o 4]: centre and size (y, x, height, width) of the reference boxes."""
        return np.array([one["layers"][layer]["reference"] for one in self.records])

    def mean(self, values: np.ndarray) -> list[float]:
        """Mean and interval."""
        return _with_interval(bootstrap.mean(values, self.draws))

    def correlation(self, a: np.ndarray, b: np.ndarray) -> list[float]:
        """Pearson's correlation and its interval; of vectors, their components together."""
        repeats = a[0].size
        return _with_interval(correlations(a.ravel(), b.ravel(), np.repeat(self.draws, repeats, axis=1)))


def correlations(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted Pearson's correlations, one per row of ``weights``; NaN where one side is constant."""
    there = np.isfinite(a) & np.isfinite(b)
    a, b, weights = a[there], b[there], weights[:, there]
    total = weights.sum(axis=1)

    def mean(values: np.ndarray) -> np.ndarray:
        return weights @ values / total

    with np.errstate(invalid="ignore", divide="ignore"):
        both = mean(a * b) - mean(a) * mean(b)
        spread = (mean(a * a) - mean(a) ** 2) * (mean(b * b) - mean(b) ** 2)
        return np.where(spread > 1e-18, both / np.sqrt(spread), np.nan)


def _with_interval(drawn: np.ndarray) -> list[float]:
    low, high = bootstrap.interval(drawn[1:])
    return [float(drawn[0]), low, high]


def summary(objects: Objects, layer: int) -> dict[str, Any]:
    """All numbers of a decoder layer, each [value, low, high], by source; ``over`` compares the points with a null."""
    reference = objects.reference(layer)
    rank = rankdata(objects.size)
    residual = (objects.centre - reference[:, :2]) / reference[:, 2:]
    to_mask = (objects.centroid - reference[:, :2]) / reference[:, 2:]
    too_small = np.log(objects.size / np.sqrt(reference[:, 2:].prod(axis=1)))
    errors: dict[str, np.ndarray] = {}
    found: dict[str, Any] = {"sources": {}, "over": {}}
    for source in SOURCES:
        mean, radius = objects.of(layer, source, "mean"), objects.of(layer, source, "radius")
        errors[source] = np.linalg.norm(mean - objects.centre, axis=1) / objects.size
        moved = (mean - reference[:, :2]) / reference[:, 2:]
        relative = np.log(np.maximum(radius, 1e-6) / np.sqrt(reference[:, 2:].prod(axis=1)))
        still = source in ("fresh", "reference")  # proportional to the reference box by construction
        found["sources"][source] = {
            "centre_error": objects.mean(errors[source]),
            "centroid_error": objects.mean(np.linalg.norm(mean - objects.centroid, axis=1) / objects.size),
            "towards": [np.nan] * 3 if still else objects.correlation(moved, residual),
            "towards_mask": [np.nan] * 3 if still else objects.correlation(moved, to_mask),
            "in_box": objects.mean(objects.of(layer, source, "box")),
            "in_mask": objects.mean(objects.of(layer, source, "mask")),
            "radius_rank": objects.correlation(rankdata(radius), rank),
            "radius_corrects": [np.nan] * 3 if still else objects.correlation(relative, too_small),
            "radius_to_size": objects.mean(radius / objects.size),
        }
    own = {key: objects.of(layer, "points", key) for key in ("box", "mask", "mean")}
    for source in SOURCES[1:]:
        apart = {key: own[key] - objects.of(layer, source, key) for key in ("box", "mask")}
        centroid = [np.linalg.norm(objects.of(layer, s, "mean") - objects.centroid, axis=1) for s in ("points", source)]
        found["over"][source] = {
            "centre_error": objects.mean(errors["points"] - errors[source]),
            "centroid_error": objects.mean((centroid[0] - centroid[1]) / objects.size),
            "nearer": objects.mean((errors["points"] < errors[source]).astype(float)),
            "in_box": objects.mean(apart["box"]),
            "in_mask": objects.mean(apart["mask"]),
        }
    found["chance"] = objects.mean(objects.chance)
    return found


def tables(folder: Path) -> None:
    """Write the numbers of all collected files, and the tables of the document."""
    results = []
    for path in sorted(folder.glob("*.records.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        objects = Objects(content["records"], content["photos"])
        layers = len(content["records"][0]["layers"])
        results.append(
            {key: content[key] for key in ("detector", "data", "photos", "annotated")}
            | {"matched": len(content["records"]), "layers": [summary(objects, layer) for layer in range(layers)]}
        )
    write_json(Path(__file__).with_name("results.json"), _plain(results), indent=None)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return (round(value, 5) if np.isfinite(value) else None) if isinstance(value, float) else value


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("collect")
    first.add_argument("data", type=Path)
    for option in ("--detector", "--name"):
        first.add_argument(option, required=True)
    first.add_argument("--split", default="val")
    first.add_argument("--max-photos", type=int)
    first.add_argument("--out", type=Path, required=True)
    commands.add_parser("tables").add_argument("folder", type=Path)
    given = parser.parse_args(arguments)
    if given.command == "tables":
        tables(given.folder)
        return
    dataset = read_coco(given.data, given.split)
    photos = dataset.photos[: given.max_photos]
    detector = deformscope.load(given.detector)
    records = collect(detector, photos, dataset.names)
    write_json(
        given.out / f"{given.name}.records.json",
        {
            "detector": detector.name,
            "data": f"{dataset.annotations.parent.parent.name}/{dataset.annotations.name}",
            "photos": len(photos),
            "annotated": sum(not one.ignored for photo in photos for one in photo.objects),
            "records": records,
        },
    )


if __name__ == "__main__":
    main(sys.argv[1:])
