"""Photos and annotations in COCO's layout, and what is wrong with them."""

import pytest
import torch

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
    assert CocoFolder(folder, "train", masks=True).load(2).masks.shape == (0, 64, 64)
    assert kept.load(3).ignore.tolist() == [True]
    dropped = CocoFolder(folder, "train", empty="drop")
    assert list(dropped.sizes) == [(60, 80), (90, 64)]  # a crowd alone teaches nothing


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


@pytest.mark.parametrize(
    ("folder", "split", "photos", "masks"),
    [
        ("voc_animals", "val", 1000, False),
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
