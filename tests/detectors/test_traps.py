"""Each known trap, stepped into on purpose: the recorded detections must be lost, or the tests would not see the trap.

The shares are of detections of a random-weight detector, 1 without a trap (that is ``test_oracle``'s to show).
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from test_oracle import survivors

from deformscope.detectors import deform, preparation
from deformscope.detectors.rcnn import boxes, roi
from deformscope.detectors.rcnn.config import MMDETECTION
from deformscope.fields.places import Placement

ANCHORS = boxes.base_anchors


def rearranged(monkeypatch, order):
    """Hand the operator its offset channels in another order: ``order`` takes and gives [n k 2 h w]."""
    real = deform.deform_conv2d

    def wrong(x, offset, *rest):
        n, channels, h, w = offset.shape
        changed = order(offset.view(n, channels // 2, 2, h, w)).reshape(offset.shape)
        return real(x, changed, *rest)

    monkeypatch.setattr(deform, "deform_conv2d", wrong)


def swapped(monkeypatch, detector):
    rearranged(monkeypatch, lambda o: o.flip(2))


def planar(monkeypatch, detector):
    rearranged(monkeypatch, lambda o: torch.stack(o.flatten(1, 2).chunk(2, dim=1), dim=2))


def column_major(monkeypatch, detector):
    rearranged(monkeypatch, lambda o: o.unflatten(1, (3, 3)).transpose(1, 2).flatten(1, 2))


def stride_in_the_1x1(monkeypatch, detector):
    for stage in (detector.backbone.layer2, detector.backbone.layer3, detector.backbone.layer4):
        block = stage[0]
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
        block.conv2.conv_offset.stride = (1, 1)


def prepared(detector, **changes):
    how = replace(detector.config.dialect.preparation, **changes)
    detector.config = replace(detector.config, dialect=replace(detector.config.dialect, preparation=how))


def blue_first(monkeypatch, detector):
    prepared(detector, bgr=True)


def without_std(monkeypatch, detector):
    prepared(detector, std=(1.0, 1.0, 1.0))


def background_first(monkeypatch, detector):
    real = detector.box_head.cls.forward
    monkeypatch.setattr(detector.box_head.cls, "forward", lambda x: real(x).roll(-1, dims=1))


def unit_box_stds(monkeypatch, detector):
    monkeypatch.setattr(roi, "BOX_STDS", (1.0, 1.0, 1.0, 1.0))


def anchors_at_cell_centres(monkeypatch, detector):
    monkeypatch.setattr(boxes, "base_anchors", lambda stride: ANCHORS(stride) + stride / 2)


def rounded_anchors(monkeypatch, detector):
    monkeypatch.setattr(boxes, "base_anchors", lambda stride: ANCHORS(stride).round())


def unaligned(monkeypatch, detector):
    monkeypatch.setattr(roi, "roi_align", lambda *a, **k: torchvision.ops.roi_align(*a, **k | {"aligned": False}))


def two_samples_a_bin(monkeypatch, detector):
    monkeypatch.setattr(roi, "roi_align", lambda *a, **k: torchvision.ops.roi_align(*a, **k | {"sampling_ratio": 2}))


def no_norm_eps(monkeypatch, detector):
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.0


def clipped_to_padding(monkeypatch, detector):
    inner = Placement.network_size.fget
    padded = property(lambda placement: tuple(-(-side // 32) * 32 for side in inner(placement)))
    monkeypatch.setattr(Placement, "network_size", padded)


TRAPS = {
    # The share that may survive within IoU .999 and score .0001 (all do without a trap): what was measured, rounded up.
    swapped: 0.0,
    planar: 0.0,
    column_major: 0.0,
    stride_in_the_1x1: 0.0,
    blue_first: 0.0,
    without_std: 0.0,
    background_first: 0.0,
    unit_box_stds: 0.0,
    anchors_at_cell_centres: 0.0,
    unaligned: 0.0,
    two_samples_a_bin: 0.25,
    rounded_anchors: 0.85,
    no_norm_eps: 0.5,
    clipped_to_padding: 0.9,
}


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_a_trap_loses_the_recorded_detections(oracles, monkeypatch, trap):
    oracle = oracles["faster"]
    detector = oracle.load()
    trap(monkeypatch, detector)
    share = survivors(detector(oracle.photos), oracle, iou=0.999, score=1e-4)
    assert share <= TRAPS[trap]


def test_modulation_is_a_sigmoid_of_the_last_third_and_counts_once(oracles):
    oracle = oracles["mask"]
    layer = oracle.load().backbone.layer2[0].conv2
    name = "layer2.0.conv2"
    x, out = (oracle[f"{kind}/{name}"] for kind in ("dconv_in", "dconv_out"))
    geometry = (layer.weight, None, layer.stride, layer.padding, layer.dilation)

    def error(offset, modulation):
        found = deform.deform_conv2d(x, offset, *geometry, modulation)
        return float((found - out).abs().max() / out.std())

    with torch.no_grad():
        raw = layer.conv_offset(x)
        assert error(raw[:, :18], raw[:, 18:].sigmoid()) < 1e-4
        assert error(raw[:, :18], raw[:, 18:]) > 0.1
        assert error(raw[:, :18], 2 * raw[:, 18:].sigmoid()) > 0.1  # as version 2's paper's own code had it
        assert error(raw[:, 9:], raw[:, :9].sigmoid()) > 0.1


def test_p6_keeps_its_stride_where_the_maps_sizes_suggest_another():
    height = 800
    cells = -(-height // 32)
    p6 = (cells + 1) // 2
    assert height // p6 == 61  # what torchvision would infer
    grid = boxes.grid_anchors((p6, 1), boxes.STRIDES[4]).view(p6, 3, 4)
    centre = (grid[..., 1] + grid[..., 3]) / 2
    assert torch.allclose(centre[:, 0].diff(), torch.tensor(64.0))


def test_a_photo_480_by_640_becomes_800_by_1067():
    assert preparation.target_size((480, 640), MMDETECTION.preparation) == (800, 1067)
    transform = torchvision.models.detection.transform.GeneralizedRCNNTransform(800, 1333, [0.0] * 3, [1.0] * 3)
    resized = transform([torch.zeros(3, 480, 640)])[0].image_sizes[0]
    assert resized == (800, 1066)  # torchvision's own is the trap


def test_pillow_in_place_of_opencv_is_grey_levels_off_when_shrinking(oracles):
    oracle = oracles["faster"]
    for photo, (height, width) in zip(oracle.photos, oracle.sizes("img_shape"), strict=True):
        resized = preparation.resize_opencv(photo, (height, width))
        wrong = preparation.resize_pillow(photo, resized.shape[:2])
        assert np.abs(wrong.astype(int) - resized).mean() > 1


def test_padding_is_zero_after_normalisation(oracles):
    oracle = oracles["faster"]
    batch, placements = oracle.load().prepare(oracle.photos)
    height, width = placements[0].network_size
    assert batch[0, :, height:].abs().max() == 0 and batch[0, :, :, width:].abs().max() == 0
    assert batch.shape[-2] % 32 == 0 and batch.shape[-1] % 32 == 0


def test_faster_divides_boxes_before_suppression_and_mask_after(oracles, monkeypatch):
    calls = []
    real = roi.suppress

    def spy(found, *rest):
        calls.append(found.clone())
        return real(found, *rest)

    monkeypatch.setattr(roi, "suppress", spy)
    for kind, group, other in (("faster", "dets_rescaled", "dets"), ("mask", "dets", "dets_rescaled")):
        calls.clear()
        oracle = oracles[kind]
        oracle.load()(oracle.photos)
        for image, suppressed in enumerate(calls):
            assert all_among(oracle[f"{group}/{image}/bboxes"], suppressed)
            assert not all_among(oracle[f"{other}/{image}/bboxes"], suppressed)


def all_among(some: torch.Tensor, many: torch.Tensor) -> bool:
    return bool(((some[:, None] - many).abs().amax(dim=2).amin(dim=1) < 0.05).all())


def test_the_other_order_of_suppression_and_rescaling_moves_pairs_at_the_threshold(oracles):
    """A pair's IoU changes with the aspect of the scale: 234/600 and 200/512 are not the same."""
    placement = oracles["faster"].placements[0]
    scale = torch.tensor([placement.scale[1], placement.scale[0]] * 2)
    pair = torch.tensor([[10.0, 20.0, 110.0, 95.0], [14.0, 33.0, 140.0, 99.0]])
    iou = torchvision.ops.box_iou(pair[:1], pair[1:])
    rescaled = torchvision.ops.box_iou(pair[:1] / scale, pair[1:] / scale)
    assert iou != rescaled


def test_masks_resized_to_whole_pixels_are_off(oracles):
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    oracle = oracles["mask"]
    logits, found = oracle["mask_logits/0"], oracle["dets_rescaled/0/bboxes"]
    wrong = paste_masks_in_image(logits.sigmoid()[:, None], found, oracle.placements[0].size)[:, 0] >= 0.5
    assert int((wrong != oracle.masks(0)).sum()) > 1000


def test_pyramid_levels_are_told_by_the_square_root_of_the_area():
    sides = torch.tensor([10.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 2000.0])
    rois = torch.stack([torch.zeros(8), torch.zeros(8), torch.zeros(8), sides * 2, sides / 2], dim=1)
    assert roi.roi_levels(rois).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_trunk_keeps_its_statistics_and_its_first_stage_in_training(oracles):
    oracle = oracles["faster"]
    detector = oracle.load().train()
    before = {k: v.clone() for k, v in detector.state_dict().items() if "running" in k}
    detector.backbone(oracle.batch)
    assert all(torch.equal(detector.state_dict()[k], v) for k, v in before.items())
    assert not any(p.requires_grad for p in detector.backbone.layer1.parameters())
    assert detector.backbone.layer2[0].bn2.weight.requires_grad
    assert detector.training and detector.backbone.layer2.training
