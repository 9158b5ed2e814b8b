"""Drawn shapes: their truth is exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deformscope.errors import DeformscopeError
from deformscope.training.recipe import Shapes
from deformscope.training.shapes import VISIBLE, ShapesSet

SMALL = Shapes(train=40, val=30, size=(72, 100))


def test_boxes_are_the_masks_extents():
    for index in range(30):
        sample = ShapesSet(SMALL, "train").load(index)
        for box, mask in zip(sample.boxes, sample.masks, strict=True):
            y, x = mask.nonzero().unbind(1)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_objects_cover_each_other_in_part_only():
    for index in range(30):
        masks = ShapesSet(SMALL, "train").load(index).masks
        assert (masks.sum(0) <= 1).all()  # what is covered belongs to the one in front
        assert all(mask.sum() >= 40 * VISIBLE for mask in masks)


def test_an_image_is_the_same_whenever_it_is_drawn_and_differs_from_all_others():
    from deformscope.training.shapes import _drawn

    first = ShapesSet(SMALL, "train").load(7)
    _drawn.cache_clear()
    again = ShapesSet(SMALL, "train").load(7)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.boxes, again.boxes)
    others = [ShapesSet(SMALL, "train").load(8), ShapesSet(SMALL, "val").load(7)]
    assert not any(torch.equal(first.image, other.image) for other in others)


def test_harder_images_show_the_same_objects_with_less_contrast():
    contrasts = []
    for difficulty in (0.0, 0.5, 1.0):
        shapes = ShapesSet(replace(SMALL, difficulty=difficulty), "train")
        found = []
        for index in range(20):
            sample = shapes.load(index)
            image = sample.image.float()
            ground = ~sample.masks.any(0)
            for mask in sample.masks:
                gap = (image[:, mask].mean(1) - image[:, ground].mean(1)).norm()
                found.append(gap / image[:, ground].std(1).norm())
        contrasts.append(float(np.median(found)))
    assert contrasts[0] > 2 * contrasts[1] > 2 * contrasts[2]


def test_the_truth_is_coco_and_areas_are_the_masks():
    shapes = ShapesSet(SMALL, "val")
    truth = shapes.truth()
    assert [image["id"] for image in truth["images"]] == list(range(30))
    by_image = [one for one in truth["annotations"] if one["image_id"] == 4]
    sample = shapes.load(4)
    assert [one["area"] for one in by_image] == sample.masks.flatten(1).sum(1).tolist()
    assert [one["category_id"] - 1 for one in by_image] == sample.labels.tolist()
    assert {one["category_id"] for one in truth["annotations"]} == {1, 2, 3, 4}


def test_another_seed_draws_other_images():
    first, again, other = (ShapesSet(replace(SMALL, seed=seed), "val").load(0) for seed in (0, 0, 1))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)


@pytest.mark.parametrize("wrong", [{"size": (20, 90)}, {"difficulty": 1.5}, {"val": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(DeformscopeError, match=r"data\.shapes"):
        ShapesSet(replace(SMALL, **wrong), "train")
