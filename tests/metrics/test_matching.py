"""Class-agnostic AP against pycocotools', crowds and ties included."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deformscope.metrics import matching


def rectangles(random, count, shape=(40, 56)):
    masks = np.zeros((count, *shape), dtype=bool)
    for mask in masks:
        top, left = random.integers(0, 28), random.integers(0, 40)
        mask[top : top + random.integers(4, 14), left : left + random.integers(4, 18)] = True
    return masks


@pytest.fixture(scope="module")
def images():
    """Segments near objects and beside them, with crowds, empty photos and equal scores."""
    random = np.random.default_rng(7)
    made = []
    for number in range(30):
        objects = rectangles(random, number % 5)
        ignored = random.random(len(objects)) < 0.25
        near = [np.roll(mask, random.integers(-2, 3, 2), axis=(0, 1)) for mask in objects for _ in range(2)]
        segments = np.concatenate([np.array(near, dtype=bool).reshape(-1, 40, 56), rectangles(random, 3)])
        scores = np.round(random.random(len(segments)), 1)
        made.append((objects, ignored, segments, scores))
    return made


def matched(images):
    return [
        matching.match(
            matching.mask_iou(
                segments.reshape(len(segments), 40 * 56), objects.reshape(len(objects), 40 * 56), ignored
            ),
            scores,
            ignored,
        )
        for objects, ignored, segments, scores in images
    ]


def whole(images):
    """AP with each image counted once."""
    return matching.average_precision(matching.Pooled.of(images), np.ones((1, len(images))))[0]


def coco_stats(images):
    truth = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}], "info": {}}
    found = []
    for number, (objects, ignored, segments, scores) in enumerate(images, start=1):
        truth["images"].append({"id": number, "height": 40, "width": 56})
        for mask, crowd in zip(objects, ignored, strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": rle,
                    "area": int(mask.sum()),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "iscrowd": int(crowd),
                }
            )
        for mask, score in zip(segments, scores, strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            found.append({"image_id": number, "category_id": 1, "segmentation": rle, "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = truth
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def test_ap_is_pycocotools(images):
    result, oracle = matched(images), coco_stats(images)
    ap = whole(result)
    precision = oracle.eval["precision"][:, :, 0, 0, 2]  # [t 101]
    assert ap == pytest.approx(precision.mean(axis=1), abs=1e-9)
    assert 0.05 < ap[0] < 0.95  # a case that can go wrong


def test_a_bootstrap_weight_counts_like_so_many_copies_of_a_photo(images):
    result = matched(images)
    counts = np.random.default_rng(0).integers(0, 3, len(result))
    copies = [m for m, count in zip(result, counts, strict=True) for _ in range(count)]
    weighted = matching.average_precision(matching.Pooled.of(result), counts[None].astype(float))[0]
    assert weighted == pytest.approx(whole(copies), abs=0.02)  # equal scores may stand otherwise


def literal_average_precision(pooled, weights, threshold):
    """Precision and recall segment by segment, then the highest precision at no less than each of 101 recalls."""
    right = wrong = 0.0
    curve = []
    for hit, skipped, image in zip(pooled.hit[threshold], pooled.skipped[threshold], pooled.image, strict=True):
        right += weights[image] * hit
        wrong += weights[image] * (not hit and not skipped)
        curve.append((right / float(weights @ pooled.objects), right / max(right + wrong, 1e-12)))
    recalls = np.linspace(0, 1, 101)
    return np.mean([max((p for r, p in curve if r >= recall), default=0.0) for recall in recalls])


def test_draws_are_counted_as_a_slow_loop_counts_them(images, monkeypatch):
    pooled = matching.Pooled.of(matched(images))
    weights = np.random.default_rng(0).multinomial(30, [1 / 30] * 30, 7).astype(float)
    weights[3] = 0
    monkeypatch.setattr(matching, "BLOCK", 3 * len(pooled.image))  # blocks of three draws, and a last one of one
    found = matching.average_precision(pooled, weights)
    assert pooled.skipped.any()
    assert np.isnan(found[3]).all()
    for draw, ap in zip(np.delete(weights, 3, axis=0), np.delete(found, 3, axis=0), strict=True):
        for threshold in (0, 4, 9):
            assert ap[threshold] == pytest.approx(literal_average_precision(pooled, draw, threshold), abs=1e-12)


def test_no_segments_and_no_objects_are_no_error():
    none = matching.match(np.zeros((0, 2)), np.zeros(0), np.array([False, True]))
    assert (none.objects, none.hit.shape) == (1, (10, 0))
    assert whole([none]).tolist() == [0.0] * 10
    empty = matching.match(np.zeros((2, 0)), np.ones(2), np.zeros(0, dtype=bool))
    assert np.isnan(whole([empty])).all()
