"""Proposals through deformable heads, and what torchvision's RoI heads make of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from deformscope.detectors.dense.config import DenseRCNNConfig
from deformscope.detectors.dense.dense_rcnn import DenseRCNN
from deformscope.errors import DeformscopeError


@pytest.fixture
def detector():
    torch.manual_seed(0)
    config = DenseRCNNConfig(("cat", "dog"), channels=16, proposals=12, rois_per_image=16, width=32, shorter_side=64)
    network = DenseRCNN(config)
    for head in network.heads.values():
        nn.init.normal_(head.deform.conv_offset.weight, std=0.05)
        nn.init.normal_(head.cls.weight, std=0.5)
    return network


@pytest.fixture
def predictions(detector):
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    return detector.predict(detector.trunk(images))


TARGETS = [
    {
        "boxes": torch.tensor([[5.0, 6, 50, 40], [60, 10, 90, 60]]),
        "labels": torch.tensor([1, 0]),
        "ignore": torch.tensor([False, True]),
    },
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


class Fixed(nn.Module):
    """In place of the RoI heads."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, *arguments):
        return self.answer(*arguments)


def test_proposals_are_the_best_cells_boxes_of_any_class_without_doubles(detector, predictions):
    assert predictions.cls.shape[-1] == 1
    for boxes in detector.proposals(predictions):
        assert 1 < len(boxes) <= 12
        assert not boxes.requires_grad
        assert boxes.min() >= 0
        assert (boxes[:, 2] <= 96).all()
        assert (boxes[:, 3] <= 64).all()
        assert (box_iou(boxes, boxes) - torch.eye(len(boxes))).max() <= 0.7
    scores = (predictions.cls[0, :, 0].sigmoid() * predictions.iou[0].sigmoid()).detach()
    best = predictions.boxes[0, scores.argmax()].detach().clamp(min=0).minimum(torch.tensor([96.0, 64, 96, 64]))
    assert torch.allclose(detector.proposals(predictions)[0][0], best)


def test_both_stages_learn_and_the_trunk_does_not(detector, predictions):
    losses = detector.train().prediction_losses(predictions, TARGETS)
    assert set(losses) == {"loss_cls", "loss_box", "loss_iou", "loss_roi_cls", "loss_roi_box"}
    sum(losses.values()).backward()
    learning = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    assert not any(name.startswith("trunk.") for name in learning)
    assert all(p.grad is not None for p in learning.values())
    assert detector.roi.box_predictor.cls_score.weight.grad.abs().sum() > 0
    assert detector.heads["stride16"].deform.conv_offset.weight.grad.abs().sum() > 0


def test_what_lies_in_an_ignored_box_teaches_the_second_stage_nothing(detector, predictions, monkeypatch):
    inside, outside = [62.0, 12, 88, 58], [0.0, 0, 30, 30]
    regions = [torch.tensor([inside, outside]), torch.tensor([outside])]
    monkeypatch.setattr(detector, "proposals", lambda predictions: regions)
    seen = {}

    def roi(maps, proposals, shapes, targets):
        seen.update(proposals=proposals, targets=targets, shapes=shapes)
        return [], {"loss_classifier": torch.zeros(()), "loss_box_reg": torch.zeros(())}

    detector.roi = Fixed(roi)
    detector.prediction_losses(predictions, TARGETS)
    assert [boxes.tolist() for boxes in seen["proposals"]] == [[outside], [outside]]
    assert [target["labels"].tolist() for target in seen["targets"]] == [[2], []]  # 0 is the background
    assert seen["shapes"] == [(64, 96), (64, 96)]


def test_detections_are_in_the_photos_px_with_labels_from_zero(detector):
    def roi(maps, proposals, shapes):
        boxes = torch.tensor([[8.0, 16, 32, 40]])
        return [{"boxes": boxes, "labels": torch.tensor([2]), "scores": torch.tensor([0.9])}], {}

    detector.roi = Fixed(roi)
    photo = np.zeros((128, 160, 3), np.uint8)  # shown at half its size
    found = detector.eval()(photo)[0]
    assert found["labels"].tolist() == [1]
    assert torch.allclose(found["boxes"], torch.tensor([[16.0, 32, 64, 80]]), atol=0.6)


@pytest.mark.parametrize("settings", [{"min_score": 1.5}, {"nms": -0.1}, {"max_detections": 0}])
def test_settings_of_detection_out_of_their_range_are_refused(detector, settings):
    ((name, value),) = settings.items()
    with pytest.raises(DeformscopeError, match=f"{name}={value}.*expected"):
        detector.eval()(np.zeros((64, 96, 3), np.uint8), **settings)


def with_masks(detector: DenseRCNN) -> DenseRCNN:
    torch.manual_seed(0)
    return DenseRCNN(replace(detector.config, masks=True))


def test_masks_are_pasted_where_the_region_lies_on_the_photo(detector):
    detector = with_masks(detector).eval()

    def roi(maps, proposals, shapes):
        mask = torch.zeros(1, 1, 28, 28)
        mask[..., :14] = 1  # the left half of the region
        boxes = torch.tensor([[8.0, 16, 32, 40]])
        return [{"boxes": boxes, "labels": torch.tensor([2]), "scores": torch.tensor([0.9]), "masks": mask}], {}

    detector.roi = Fixed(roi)
    found = detector(np.zeros((128, 160, 3), np.uint8))[0]  # shown at half its size
    (mask,) = found["masks"]
    assert mask.shape == (128, 160)
    assert mask.dtype == torch.bool
    assert mask[34:78, 18:38].all()
    assert not mask[:, 42:].any()
    assert not mask[:30].any()
