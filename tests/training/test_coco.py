"""Photos and annotations in COCO's layout, and what is wrong with them."""

import pytest
import torch
from PIL import Image

from deformscope.errors import DeformscopeError
from deformscope.training.sources import CocoFolder


def change(index, **values):
    return lambda records: records["annotations"][index].update(values)


def test_labels_follow_the_ids_and_boxes_are_corners(coco):
    split = CocoFolder(coco(), "train", masks=True)
    assert split.names == ("cat", "dog")  # ids 3 and 7, listed the other way round
    first = split.load(0)
    assert first.image.shape == (3, 60, 80)
    assert first.boxes.tolist() == [[10, 12, 40, 32], [40, 5, 65, 38]]
    assert first.labels.tolist() == [1, 1]
    assert first.masks[0].sum() == 30 * 20


def test_crowds_are_ignored_and_empty_photos_are_kept_or_dropped(coco):
    folder = coco()
    kept = CocoFolder(folder, "train")
    assert len(kept) == 4
    assert kept.load(2).boxes.shape == (0, 4)
    assert kept.load(3).ignore.tolist() == [True]
    dropped = CocoFolder(folder, "train", empty="drop")
    assert list(dropped.sizes) == [(60, 80), (90, 64)]  # a crowd alone teaches nothing


def test_empty_photos_have_empty_masks(coco):
    assert CocoFolder(coco(), "train", masks=True).load(2).masks.shape == (0, 64, 64)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change(1, bbox=[70, 5, 25, 33]), r"1\.png, annotation 101: bbox \[70, 5, 25, 33\]: outside the photo, 80×60"),
        (change(1, bbox=[1, 5, 0, 33]), "1.png, annotation 101: bbox .* zero area"),
        (change(1, bbox=[1, 5, -4, 33]), "1.png, annotation 101: bbox .* zero area"),
        (change(1, bbox=[1, 5, float("nan"), 33]), "1.png, annotation 101: bbox .* expected four numbers"),
        (change(1, bbox=[1, 5, 3]), "1.png, annotation 101: bbox .* expected four numbers"),
        (change(1, bbox="all"), "1.png, annotation 101: bbox all: expected four numbers"),
        (change(2, category_id=4), "2.png, annotation 102: category_id 4: unknown"),
        (change(2, image_id=9), "image 9, annotation 102: no such image"),
        (change(2, id=101), "2.png, annotation 101: its id occurs more than once"),
        (lambda r: r["images"][2].update(file_name="x.png"), "x.png: no such file below"),
        (lambda r: r["images"][2].update(file_name="../3.png"), "../3.png: outside the folder of photos"),
        (lambda r: r["images"].append(dict(r["images"][0])), "1.png: its image id 1 occurs more than once"),
    ],
)
def test_a_broken_annotation_is_named_by_file_and_id_before_training(coco, spoil, message):
    with pytest.raises(DeformscopeError, match=message) as error:
        CocoFolder(coco(spoil), "train")
    assert "broken=skip" in str(error.value)


def test_masks_are_asked_of_all_but_crowds_where_masks_are_learned(coco):
    def spoil(records):
        for one in records["annotations"]:
            one["segmentation"] = []

    folder = coco(spoil)
    assert len(CocoFolder(folder, "train")) == 4
    with pytest.raises(DeformscopeError, match=r"3 broken annotations.*no segmentation"):
        CocoFolder(folder, "train", masks=True)


def test_broken_annotations_can_be_left_out(coco):
    split = CocoFolder(coco(change(1, bbox=[70, 5, 25, 33])), "train", broken="skip")
    assert split.load(0).boxes.tolist() == [[10, 12, 40, 32]]
    assert [problem.annotation for problem in split.problems] == [101]
    assert [one["id"] for one in split.truth()["annotations"]] == [100, 102, 103]


def test_a_box_a_pixel_outside_is_clipped(coco):
    split = CocoFolder(coco(change(0, bbox=[-0.6, 12, 81.2, 20])), "train")
    assert split.load(0).boxes[0].tolist() == [0, 12, 80, 32]


def test_a_photo_of_another_size_is_named(coco):
    folder = coco()
    Image.new("RGB", (30, 20)).save(folder / "train" / "1.png")
    with pytest.raises(DeformscopeError, match=r"1\.png: 30×20 px where the annotations say 80×60"):
        CocoFolder(folder, "train")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": 3}', '{"images": [1], "annotations": []}'])
def test_what_is_no_annotation_file_is_one_line(coco, content):
    folder = coco()
    (folder / "annotations" / "instances_train.json").write_text(content)
    with pytest.raises(DeformscopeError) as error:
        CocoFolder(folder, "train")
    assert "\n" not in str(error.value)


def test_a_missing_split_is_named(coco):
    with pytest.raises(DeformscopeError, match=r"no annotations/instances_val\.json"):
        CocoFolder(coco(), "val")


@pytest.mark.parametrize(
    ("folder", "split", "photos", "masks"),
    [
        ("voc_animals", "train", 1879, False),
        ("voc_animals", "val", 1000, False),
        ("voc_animals", "train_masks", 1450, True),
        ("coco_small", "train2017", 337, True),
    ],
)
def test_the_shared_photos_are_in_order(shared, folder, split, photos, masks):
    found = CocoFolder(shared / "data" / folder, split, masks=masks)
    assert len(found) == photos
    sample = found.load(3)
    assert torch.isfinite(sample.boxes).all()
    if masks:
        inside = [
            mask[int(box[1]) : round(float(box[3]) + 1), int(box[0]) : round(float(box[2]) + 1)].sum() / mask.sum()
            for box, mask in zip(sample.boxes, sample.masks, strict=True)
        ]
        assert min(inside) > 0.95
