"""Views: boxes and masks go where the photo goes."""

import pytest
import torch

from deformscope.training.augment import flipped, pasted, resized, view, window
from deformscope.training.recipe import Shapes
from deformscope.training.shapes import ShapesSet
from deformscope.training.sources import Sample

SOURCE = ShapesSet(Shapes(train=12, val=2, size=(72, 100), difficulty=0), "train")
CANVAS = (96, 128)


def block(top=10, left=20, height=12, width=30, size=(50, 70)):
    """A white block on black: where it is can be read off the picture."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    image[:, top : top + height, left : left + width] = 255
    mask = (image[:1] > 0).clone()
    box = torch.tensor([[left, top, left + width, top + height]], dtype=torch.float32)
    return Sample(image, box, torch.tensor([1]), torch.tensor([False]), mask)


def seen(sample):
    """The block's box in the picture."""
    y, x = (sample.image.float().mean(0) > 190).nonzero().unbind(1)
    return torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()


@pytest.mark.parametrize(
    "move",
    [
        flipped,
        lambda s: resized(s, (75, 63)),
        lambda s: window(s, 5, 3, 40, 60),
        lambda s: window(s, -7, -20, 90, 130),
        lambda s: window(s, 14, 8, 20, 25),
    ],
)
def test_the_box_is_where_the_block_is_seen(move):
    moved = move(block())
    assert moved.boxes.shape == (1, 4)
    assert (moved.boxes[0] - seen(moved)).abs().max() <= 1.0
    y, x = moved.masks[0].nonzero().unbind(1)
    mask_box = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
    assert (moved.boxes[0] - mask_box).abs().max() <= 1.0


def test_what_a_crop_leaves_a_sliver_of_is_ignored_and_less_is_dropped():
    # The block spans x from 20 to 50.
    assert window(block(), 0, 0, 50, 35).ignore.tolist() == [False]  # half of it
    assert window(block(), 0, 0, 50, 28).ignore.tolist() == [True]  # a quarter
    assert len(window(block(), 0, 0, 50, 22).boxes) == 0


def test_beside_a_photo_lies_the_mean_colour():
    moved = window(block(), -5, 0, 60, 70)
    assert moved.image[:, 0, 0].tolist() == [124, 116, 104]
    assert not moved.masks[0, :5].any()


@pytest.mark.parametrize("kind", ["whole", "crop", "mosaic"])
def test_views_fill_the_canvas_and_keep_boxes_inside(kind):
    for index in range(12):
        torch.manual_seed(index)
        sample = view(SOURCE, index, kind, CANVAS, flip=0.5)
        assert sample.image.shape == (3, *CANVAS)
        assert sample.masks.shape == (len(sample.boxes), *CANVAS)
        assert (sample.boxes >= 0).all()
        assert (sample.boxes[:, 2] <= CANVAS[1]).all()
        assert (sample.boxes[:, 3] <= CANVAS[0]).all()
        for box, mask in zip(sample.boxes, sample.masks, strict=True):
            left, top, right, bottom = box.round().int().tolist()
            assert mask[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1].sum() == mask.sum()


def test_a_view_is_a_pure_function_of_the_seed():
    def make(seed):
        torch.manual_seed(seed)
        return view(SOURCE, 3, "mosaic", CANVAS, flip=0.5)

    assert torch.equal(make(1).image, make(1).image)
    assert not torch.equal(make(1).image, make(2).image)


def test_pasted_objects_lie_in_front_with_their_own_boxes():
    pastes = 0
    for index in range(12):
        torch.manual_seed(index)
        onto, other = SOURCE.load(index), SOURCE.load((index + 1) % 12)
        both = pasted(onto, other)
        assert (both.masks.sum(0) <= 1).all()
        for box, mask in zip(both.boxes, both.masks, strict=True):
            y, x = mask.nonzero().unbind(1)
            extent = torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1])
            assert (box - extent).abs().max() <= 4  # a scaled triangle's tip falls between px
        untouched = ~both.masks.any(0) & ~onto.masks.any(0)
        assert torch.equal(both.image[:, untouched], onto.image[:, untouched])
        pastes += not torch.equal(both.image, onto.image)
    assert pastes > 4
