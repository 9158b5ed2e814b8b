"""COCO's AP depends on boxes, classes and scores, and on no id, with either library."""

import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from deformscope.errors import DeformscopeError
from deformscope.metrics.coco import average_precision, library, scores

BACKENDS = ["faster_coco_eval", "pycocotools"]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """Each of the libraries, the other as if it were not installed."""
    pytest.importorskip(request.param)
    real = __import__

    def fail(module, *rest, **more):
        if module.startswith("faster_coco_eval") and request.param != "faster_coco_eval":
            raise ImportError(module)
        return real(module, *rest, **more)

    monkeypatch.setattr("builtins.__import__", fail)
    assert library()[0].__module__.startswith(request.param)
    return request.param


def perfect(count=4):
    """So many photos with one object each, all found exactly."""
    truth = {
        "images": [{"id": i, "height": 60, "width": 80} for i in range(count)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [5 + i, 6, 30, 20], "area": 600, "iscrowd": 0}
            for i in range(count)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    results = [{"image_id": i, "category_id": 1, "bbox": [5 + i, 6, 30, 20], "score": 0.9} for i in range(count)]
    return truth, results


def drawn(seed=5):
    """Photos with objects of three classes and rough detections of them; crowds among the objects."""
    random = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": [{"id": c, "name": f"c{c}"} for c in (1, 2, 3)]}
    results = []
    for image in range(1, 13):
        truth["images"].append({"id": image, "height": 200, "width": 300})
        for _ in range(int(random.integers(0, 5))):
            x, y, w, h = (float(v) for v in random.uniform((0, 0, 8, 8), (150, 100, 140, 95)))
            category = int(random.integers(1, 4))
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            truth["annotations"].append(
                {"id": len(truth["annotations"]) + 1, "image_id": image, "category_id": category, "bbox": [x, y, w, h]}
                | {"area": w * h, "iscrowd": int(random.uniform() < 0.2), "segmentation": outline}
            )
            moved = (random.normal(0, 0.12, 4) * np.array([w, h, w, h]) + [x, y, w, h]).tolist()
            moved[2:] = [max(1.0, side) for side in moved[2:]]
            found = category if random.uniform() < 0.9 else 1
            results.append({"image_id": image, "category_id": found, "bbox": moved, "score": float(random.uniform())})
    return truth, results


def renamed(truth, results, image, one, category):
    """Both with other ids."""
    truth, results = json.loads(json.dumps([truth, results]))
    for entry in truth["images"]:
        entry["id"] = image(entry["id"])
    for entry in truth["categories"]:
        entry["id"] = category(entry["id"])
    for entry in (*truth["annotations"], *results):
        entry |= {"image_id": image(entry["image_id"]), "category_id": category(entry["category_id"])}
    for entry in truth["annotations"]:
        entry["id"] = one(entry["id"])
    return truth, results


IDS = {
    "zero": (lambda i: i - 1, lambda i: i - 1, lambda i: i - 1),
    "texts": (str, str, str),
    "words": (lambda i: f"photo {i:03}", lambda i: f"object {i}", lambda i: f"class {i}"),
    "floats": (lambda i: i + 0.25, float, lambda i: i / 2),
    "negative": (lambda i: i - 100, lambda i: -i, lambda i: i - 10),
    "all the same": (lambda i: i, lambda i: 0, lambda i: i),
    "null": (lambda i: i, lambda i: None, lambda i: i),
}


def test_four_perfect_detections_have_ap_100_though_an_id_is_zero(backend):
    assert average_precision(*perfect())["ap"] == pytest.approx(100)


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_ids_of_any_kind_give_the_same_ap(backend, ids):
    expected = average_precision(*drawn())
    assert 5 < expected["ap"] < 80
    assert average_precision(*renamed(*drawn(), *ids)) == expected


def test_both_libraries_agree(monkeypatch):
    for name in BACKENDS:
        pytest.importorskip(name)
    expected = average_precision(*drawn())
    real = __import__

    def fail(module, *rest, **more):
        if module.startswith("faster_coco_eval"):
            raise ImportError(module)
        return real(module, *rest, **more)

    monkeypatch.setattr("builtins.__import__", fail)
    assert average_precision(*drawn()) == pytest.approx(expected, abs=1e-9)


def test_null_crowds_and_missing_areas_are_no_crowds_and_the_objects_own(backend):
    truth, results = drawn()
    expected = average_precision(truth, results)
    for one in truth["annotations"]:
        del one["segmentation"], one["area"]  # noted were the boxes'
        if not one["iscrowd"]:
            one["iscrowd"] = None
        else:
            one["iscrowd"] = "1"
    truth["annotations"][0].pop("iscrowd")
    truth["annotations"][1]["area"] = None
    assert average_precision(truth, results) == expected


def test_a_missing_area_is_the_masks_where_there_is_one(backend):
    truth, results = perfect(1)
    (one,) = truth["annotations"]
    # The box has 40 × 40 px, medium; the triangle half of that, small.
    one |= {"bbox": [5, 6, 40, 40], "area": None, "segmentation": [[5, 6, 45, 6, 5, 46]]}
    results[0]["bbox"] = one["bbox"]
    found = average_precision(truth, results)
    assert (found["ap_small"], found["ap_medium"]) == (pytest.approx(100), None)


def test_a_crowd_without_a_mask_does_not_stop_the_masks_ap(backend):
    truth, results = perfect(2)
    for one, found in zip(truth["annotations"], results, strict=True):
        x, y, w, h = one["bbox"]
        one["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        mask = np.zeros((60, 80), dtype=bool)
        mask[y : y + h, x : x + w] = True
        from deformscope.datasets.values import run_lengths

        found["segmentation"] = run_lengths(mask)
    truth["annotations"].append(
        {"id": 9, "image_id": 0, "category_id": 1, "bbox": [50, 30, 20, 20], "area": 400, "iscrowd": 1}
    )
    assert scores(truth, results)["mask_ap"] == pytest.approx(100)


def test_results_on_other_photos_are_left_out(backend):
    truth, results = perfect()
    extra = {"image_id": "elsewhere", "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.99}
    assert average_precision(truth, [*results, extra])["ap"] == pytest.approx(100)
    assert scores(truth, results, photos=2)["ap"] == pytest.approx(100)


def test_an_unknown_class_is_an_error_and_no_number(backend):
    with pytest.raises(DeformscopeError, match=r"classes: 'sheep'; the annotations have cat"):
        average_precision(*perfect(), classes=["cat", "sheep"])


def peers(truth, results):
    """COCO's AP as pycocotools and faster-coco-eval have it of the same files."""
    from faster_coco_eval import COCO as Faster, COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = []
    for dataset, evaluation in ((COCO, COCOeval), (Faster, COCOeval_faster)):
        with contextlib.redirect_stdout(io.StringIO()):
            whole = dataset()
            whole.dataset = json.loads(json.dumps({"info": {}, "licenses": []} | truth))
            whole.createIndex()
            run = evaluation(whole, whole.loadRes(json.loads(json.dumps(results))), iouType="bbox")
            run.evaluate()
            run.accumulate()
            run.summarize()
        found.append(run.stats[:6])
    return found


@given(st.integers(0, 10**6), st.integers(0, 2), st.sampled_from([1, 2, 7]))
@settings(max_examples=15, deadline=None)
def test_ties_count_in_the_order_of_image_ids_as_in_both_libraries(seed, digits, step):
    pytest.importorskip("faster_coco_eval")
    random = np.random.default_rng(seed)
    truth, results = renamed(*drawn(seed), lambda i: step * i, lambda i: i, lambda i: i)
    for one in results:
        one["score"] = round(one["score"], digits)
    for several in (truth["images"], truth["annotations"], results):
        random.shuffle(several)
    own = average_precision(truth, results)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    for peer in peers(truth, results):
        assert [-1 if own[name] is None else own[name] / 100 for name in names] == pytest.approx(peer, abs=1e-9)


def test_without_results_there_is_no_ap_of_sizes_without_objects(backend):
    found = average_precision(perfect()[0], [])  # 600 px²: small
    assert {name: found[name] for name in ("ap", "ap_small", "ap_medium", "ap_large", "recall", "ap/cat")} == {
        "ap": 0, "ap_small": 0, "ap_medium": None, "ap_large": None, "recall": 0, "ap/cat": 0
    }  # fmt: skip
    crowd = perfect()[0]
    for one in crowd["annotations"]:
        one["iscrowd"] = 1
    assert average_precision(crowd, [])["ap"] is None


@pytest.mark.parametrize("area", [0, 0.0, "0"])
def test_an_area_of_0_is_small_and_not_missing(backend, area):
    truth, results = perfect(1)
    truth["annotations"][0] |= {"bbox": [5, 6, 50, 40], "area": area}  # the box is medium
    results[0]["bbox"] = [5, 6, 50, 40]
    found = average_precision(truth, results)
    assert (found["ap_small"], found["ap_medium"]) == (pytest.approx(100), None)
