"""The parts of two-stage detectors beside torchvision and by hand: boxes, anchors, suppression, RoI features, masks."""

import numpy as np
import torch
import torchvision

from deformscope.detectors import preparation
from deformscope.detectors.rcnn import boxes, roi
from deformscope.detectors.rcnn.config import MMDETECTION
from deformscope.detectors.rcnn.roi import mask_goals, paste, pool


def test_deltas_decode_to_what_they_encode(generator):
    corner, size = torch.rand(2, 50, 2, generator=generator) * 80
    first = torch.cat([corner, corner + size + 1], dim=1)
    second = first.roll(1, dims=0)
    stds = (0.1, 0.1, 0.2, 0.2)
    back = boxes.decode(first, boxes.encode(first, second, stds), stds, clamp_shrink=True)[:, 0]
    grown = (second[:, 2:] - second[:, :2]) / (first[:, 2:] - first[:, :2])
    sane = ((grown < 62.5) & (grown > 1 / 62.5)).all(dim=1)
    assert sane.sum() > 40 and torch.allclose(back[sane], second[sane], atol=2e-3)


def test_box_units_are_torchvisions_weights_inverted(generator):
    first = torch.tensor([[3.0, 4.0, 33.0, 54.0]])
    second = torch.tensor([[5.0, 1.0, 60.0, 44.0]])
    coder = torchvision.models.detection._utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
    expected = coder.encode_single(second, first)
    assert torch.allclose(boxes.encode(first, second, (0.1, 0.1, 0.2, 0.2)), expected, atol=1e-5)


def test_anchors_have_the_stated_areas_ratios_and_centres():
    for stride in boxes.STRIDES:
        anchor = boxes.base_anchors(stride)
        width, height = anchor[:, 2] - anchor[:, 0], anchor[:, 3] - anchor[:, 1]
        assert torch.allclose(width * height, torch.tensor((8.0 * stride) ** 2).expand(3), rtol=1e-5)
        assert torch.allclose(height / width, torch.tensor([0.5, 1.0, 2.0]))
        assert torch.allclose(anchor[:, :2], -anchor[:, 2:])
    assert (boxes.base_anchors(4)[0] != boxes.base_anchors(4)[0].round()).any()
    grid = boxes.grid_anchors((2, 3), 8).view(2, 3, 3, 4)
    assert torch.allclose(grid[1, 2] - grid[0, 0], torch.tensor([16.0, 8.0, 16.0, 8.0]))


def test_suppression_keeps_groups_apart_either_way():
    found = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 9.0, 10.0], [50.0, 50.0, 60.0, 60.0]]
    )
    scores, groups = torch.tensor([0.5, 0.9, 0.8, 0.1]), torch.tensor([7, 7, 3, 3])
    for shifted in (True, False):
        assert boxes.suppress(found, scores, groups, 0.5, shifted).tolist() == [1, 2, 3]
        assert boxes.suppress(found[:0], scores[:0], groups[:0], 0.5, shifted).tolist() == []


def test_roi_features_of_a_ramp_are_the_places_of_their_bins():
    """A map whose value is its cell's own x in px: an aligned RoI's bin reads its centre, half a cell less."""
    maps = []
    for stride, size in zip(boxes.STRIDES[:4], ((64, 80), (32, 40), (16, 20), (8, 10)), strict=True):
        row = (torch.arange(size[1]) + 0.5) * stride
        maps.append(row.expand(1, 1, *size).clone())
    rois = torch.tensor([[0.0, 40.0, 48.0, 82.0, 90.0], [0.0, 60.0, 40.0, 214.0, 180.0]])
    features = pool(maps, rois, 7)[:, 0]
    for feature, one in zip(features, rois, strict=True):
        centres = one[1] + (torch.arange(7) + 0.5) * (one[3] - one[1]) / 7
        assert torch.allclose(feature, centres.expand(7, 7), atol=0.01)


def test_a_mask_is_pasted_by_interpolating_at_pixel_centres():
    """By the letter, one pixel after the other."""
    mask = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(2))
    left, top, right, bottom = box = 2.3, 1.8, 11.6, 8.9
    found = paste(mask, torch.tensor([box]), (10, 13))[0]

    def value(row: int, column: int) -> float:
        return float(mask[0, row, column]) if 0 <= row < 5 and 0 <= column < 5 else 0.0

    for y in range(10):
        for x in range(13):
            v = (y + 0.5 - top) / (bottom - top) * 5 - 0.5
            u = (x + 0.5 - left) / (right - left) * 5 - 0.5
            (r, dr), (c, dc) = (int(np.floor(v)), v % 1), (int(np.floor(u)), u % 1)
            upper = value(r, c) * (1 - dc) + value(r, c + 1) * dc
            lower = value(r + 1, c) * (1 - dc) + value(r + 1, c + 1) * dc
            assert bool(found[y, x]) == (upper * (1 - dr) + lower * dr >= 0.5)


def test_pasted_boxes_may_lie_partly_or_wholly_outside_or_be_empty():
    mask = torch.ones(4, 28, 28)
    box = torch.tensor([[-5.0, -5.0, 3.0, 4.0], [50.0, 50.0, 60.0, 60.0], [2.0, 2.0, 2.0, 8.0], [0.0, 0.0, 12.0, 9.0]])
    found = paste(mask, box, (9, 12))
    assert found[0].sum() == 12 and not found[1].any() and found[3].all()
    assert paste(mask[:0], box[:0], (9, 12)).shape == (0, 9, 12)


def test_mask_goals_are_views_of_the_right_objects():
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[0, :, :30] = True
    masks[1, 20:] = True
    goals = mask_goals(masks, torch.tensor([[0.0, 0.0, 60.0, 40.0]] * 2), torch.tensor([1, 0]))
    assert goals[0, 14:].all() and not goals[0, :14].any()
    assert goals[1, :, :14].all() and not goals[1, :, 14:].any()


def test_a_photo_480_by_640_becomes_800_by_1067():
    assert preparation.target_size((480, 640), MMDETECTION.preparation) == (800, 1067)
    transform = torchvision.models.detection.transform.GeneralizedRCNNTransform(800, 1333, [0.0] * 3, [1.0] * 3)
    resized = transform([torch.zeros(3, 480, 640)])[0].image_sizes[0]
    assert resized == (800, 1066)  # torchvision's own is the trap


def test_pyramid_levels_are_told_by_the_square_root_of_the_area():
    sides = torch.tensor([10.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 2000.0])
    rois = torch.stack([torch.zeros(8), torch.zeros(8), torch.zeros(8), sides * 2, sides / 2], dim=1)
    assert roi.roi_levels(rois).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
