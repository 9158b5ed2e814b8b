"""COCO evaluation of detectors whose AP is known beforehand."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from deformscope.datasets.coco import CocoDataset, read_coco
from deformscope.datasets.records import Category
from deformscope.errors import DeformscopeError, DeformscopeWarning
from deformscope.metrics import coco as room
from deformscope.metrics.coco import COLUMNS, Score, class_rows, evaluate, rows


@dataclass
class Oracle:
    """Answers with prepared detections, photo by photo, by file name."""

    answers: dict
    class_names: tuple = ("dog", "cat", "unicorn")
    name: str = "oracle"

    def __call__(self, photos, **settings):
        self.batches = [*getattr(self, "batches", []), len(photos)]
        return [self.answers[photo.name] for photo in photos]


def detections(boxes, labels, scores, size=None):
    found = {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels), "scores": torch.tensor(scores)}
    if size:
        found["masks"] = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(found["masks"], boxes, strict=True):
            mask[int(top) : int(bottom), int(left) : int(right)] = True
    return found


@pytest.fixture
def dataset(tmp_path) -> CocoDataset:
    """Three photos; category ids with gaps and in another order than the detector's classes."""
    photos = tmp_path / "val2017"
    photos.mkdir()
    images, annotations = [], []
    for i, boxes in enumerate([[(10, 10, 40, 60)], [(0, 0, 100, 20), (50, 30, 30, 30)], [(5, 5, 20, 20)]]):
        Image.fromarray(np.zeros((80, 120, 3), np.uint8)).save(photos / f"{i}.png")
        images.append({"id": 70 - i, "file_name": f"{i}.png", "height": 80, "width": 120})
        for x, y, w, h in boxes:
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 70 - i,
                    "category_id": 17 if i != 2 else 90,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
    truth = {"images": images, "annotations": annotations}
    truth["categories"] = [{"id": 90, "name": "dog"}, {"id": 17, "name": "cat"}]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(truth))
    return read_coco(tmp_path)


@pytest.fixture
def perfect() -> dict:
    return {
        "0.png": detections([[10.0, 10.0, 50.0, 70.0]], [1], [0.9], (80, 120)),
        "1.png": detections([[50.0, 30.0, 80.0, 60.0], [0.0, 0.0, 100.0, 20.0]], [1, 1], [0.8, 0.7], (80, 120)),
        "2.png": detections([[5.0, 5.0, 25.0, 25.0], [1.0, 1.0, 9.0, 9.0]], [0, 2], [0.6, 0.99], (80, 120)),
    }


def without(name):
    """An import that fails, as where the library is not installed."""
    real = __import__

    def fail(module, *rest, **more):
        if module.startswith(name):
            raise ImportError(module)
        return real(module, *rest, **more)

    return fail


@pytest.mark.parametrize("missing", ["nothing", "faster_coco_eval"])
def test_what_is_exactly_right_has_ap_100_with_either_library(dataset, perfect, monkeypatch, capsys, missing):
    pytest.importorskip("faster_coco_eval" if missing == "nothing" else "pycocotools")
    monkeypatch.setattr("builtins.__import__", without(missing))
    detector = Oracle(perfect)
    box, mask = evaluate(detector, dataset, batch=2)
    assert (box.kind, mask.kind) == ("box", "mask")
    assert box.ap == pytest.approx(100) == box.ap50 == mask.ap == mask.recall
    assert np.isnan(box.large) and box.small == pytest.approx(100)
    assert detector.batches == [2, 1]
    assert capsys.readouterr().out == ""


def test_a_box_of_iou_two_thirds_counts_at_four_of_ten_thresholds(dataset, perfect):
    perfect["2.png"] = detections([[5.0, 5.0, 25.0, 35.0]], [0], [0.6])
    perfect = {name: {k: v for k, v in found.items() if k != "masks"} for name, found in perfect.items()}
    (box,) = evaluate(Oracle(perfect), dataset)
    assert box.ap == pytest.approx((100 + 40) / 2)
    assert box.ap50 == pytest.approx(100) and box.ap75 == pytest.approx(50)


def test_a_wrong_class_is_no_detection_and_no_detection_is_zero(dataset, perfect):
    for found in perfect.values():
        found["labels"] = 1 - found["labels"].clamp(max=1)
    box, _ = evaluate(Oracle(perfect), dataset)
    assert box.ap == 0
    nothing = {name: detections(torch.zeros(0, 4).tolist(), [], []) for name in perfect}
    nothing = {name: found | {"boxes": torch.zeros(0, 4)} for name, found in nothing.items()}
    assert evaluate(Oracle(nothing), dataset)[0].ap == 0


def test_only_the_photos_asked_for_count(dataset, perfect):
    detector = Oracle(perfect)
    box, _ = evaluate(detector, dataset, max_photos=1)  # the lowest id: the dog
    assert detector.batches == [1] and box.ap == pytest.approx(100)


def test_classes_can_be_chosen_and_each_has_its_ap(dataset, perfect):
    perfect["2.png"] = detections([[5.0, 5.0, 25.0, 35.0]], [0], [0.6], (80, 120))  # of the dog, with IoU 2/3
    box, mask = evaluate(Oracle(perfect), dataset)
    assert box.by_class == pytest.approx({"cat": 100, "dog": 40}) == mask.by_class
    assert box.ap == pytest.approx(70)
    (dog, _), (cat, _) = (evaluate(Oracle(perfect), dataset, classes=[name]) for name in ("dog", "cat"))
    assert (dog.ap, cat.ap) == pytest.approx((40, 100))
    assert dog.by_class == pytest.approx({"dog": 40})
    assert class_rows([box, mask]) == [("cat", "100.0", "100.0"), ("dog", "40.0", "40.0")]
    assert class_rows([box, dog]) == [("cat", "100.0", "–"), ("dog", "40.0", "40.0")]


def test_classes_that_are_called_otherwise_are_matched_and_named(dataset, perfect, monkeypatch):
    names = {"cat": "dining table", "dog": "couch"}
    renamed = tuple(Category(one.id, names[one.name]) for one in dataset.categories)
    detector = Oracle(perfect, class_names=("sofa", "diningtable", "unicorn"))
    with pytest.warns(DeformscopeWarning, match=r"by another name: couch \(sofa\), dining table \(diningtable\)"):
        box, mask = evaluate(detector, replace(dataset, categories=renamed))
    assert box.ap == pytest.approx(100) == mask.ap and set(box.by_class) == set(names.values())
    (chosen, _) = evaluate(detector, replace(dataset, categories=renamed), classes=["sofa"])
    assert list(chosen.by_class) == ["couch"]


@pytest.mark.parametrize(
    ("known", "wanted", "matched"),
    [
        (("aeroplane", "tvmonitor", "motorbike"), ("tv", "motorcycle", "airplane"), ("airplane", "tv", "motorcycle")),
        (("potted plant", "airplane"), ("pottedplant", "aeroplane"), ("pottedplant", "aeroplane")),
        (("Traffic_Light", "hair drier"), ("traffic light", "hair_dryer"), ("traffic light", "hair_dryer")),
        (("sofa", "couch"), ("couch", "cat"), ("sofa", "couch")),  # the name itself comes first
        (("tv", "TV"), ("tvmonitor",), ("tv", "TV")),  # which of them?
        (("sofa",), ("couch", "Couch"), ("sofa",)),
        (("dog", "cow"), ("cat", "cow"), ("dog", "cow")),
    ],
)
def test_only_names_that_mean_one_class_on_both_sides_are_matched(known, wanted, matched):
    from deformscope.metrics.coco import same_classes

    assert same_classes(known, wanted) == matched


def test_the_table_has_a_row_a_kind():
    table = rows([Score("box", 41.34, 62, 45, 23, 44.96, float("nan"), 55)])
    assert table == [("box", "41.3", "62.0", "45.0", "23.0", "45.0", "–", "55.0")]
    assert len(COLUMNS) == len(table[0])


def test_what_cannot_be_evaluated_is_named(dataset, perfect, monkeypatch):
    with pytest.raises(DeformscopeError, match="no class that oracle knows"):
        evaluate(Oracle(perfect, class_names=("sofa",)), dataset)
    with pytest.raises(DeformscopeError, match="batch=0"):
        evaluate(Oracle(perfect), dataset, batch=0)
    with pytest.raises(DeformscopeError, match=r"classes=\['dog', 'unicorn'\]: 'unicorn' not both .* some of dog, cat"):
        evaluate(Oracle(perfect), dataset, classes=["dog", "unicorn"])
    monkeypatch.setattr("builtins.__import__", without(("faster_coco_eval", "pycocotools")))
    with pytest.raises(DeformscopeError, match="pip install faster-coco-eval"):
        room.library()


def test_a_real_detector_against_its_own_recorded_detections_has_all_of_the_ap(oracles, tmp_path):
    """Its photos, resized, its boxes and masks in their px: what MMDetection found is the truth here."""
    oracle = oracles["mask"]
    images, annotations = [], []
    for image, photo in enumerate(oracle.photos):
        Image.fromarray(photo).save(tmp_path / f"{image}.png")
        images.append({"id": image, "file_name": f"{image}.png", "height": photo.shape[0], "width": photo.shape[1]})
        boxes, labels = (oracle[f"dets_rescaled/{image}/{key}"].tolist() for key in ("bboxes", "labels"))
        size, counts = (oracle.numbers[f"masks_rle/{image}{key}"].tolist() for key in ("#size", ""))
        areas = oracle[f"masks_area/{image}"].tolist()
        for (x0, y0, x1, y1), label, rle, area in zip(boxes, labels, counts, areas, strict=True):
            found = {"image_id": image, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": area}
            found |= {"id": len(annotations), "iscrowd": 0, "segmentation": {"size": size, "counts": rle}}
            annotations.append(found)
    detector = oracle.load()
    categories = [{"id": i, "name": name} for i, name in enumerate(detector.class_names)]
    table = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(table))
    box, mask = evaluate(detector, read_coco(tmp_path), batch=2)
    assert box.ap == pytest.approx(100) and mask.ap == pytest.approx(100)
