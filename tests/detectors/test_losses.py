"""The training step of real MMDetection, with its recorded samples; and the assignment rules by themselves."""

import math

import pytest
import torch
import torchvision

from deformscope.detectors.checkpoints.mmdet import to_theirs
from deformscope.detectors.detector import Batch
from deformscope.detectors.rcnn.boxes import BACKGROUND, IGNORED, STRIDES, Sample, assign, draw, grid_anchors
from deformscope.detectors.rcnn.rcnn import Samples
from deformscope.detectors.rcnn.rpn import _on_photo


def batch_of(oracle) -> Batch:
    names = {"boxes": "bboxes", "labels": "labels", "masks": "masks"}
    targets = [
        {ours: oracle[f"train/gt/{i}/{theirs}"] for ours, theirs in names.items() if f"train/gt/{i}/{theirs}" in oracle}
        for i in (0, 1)
    ]
    return Batch(targets, oracle.batch, tuple(oracle.placements))


def samples_of(oracle) -> Samples:
    def drawn(group: str) -> list[Sample]:
        return [Sample(*(oracle[f"train/{group}/{i}/{sign}_inds"] for sign in ("pos", "neg"))) for i in (0, 1)]

    proposed = [oracle[f"train/train_proposals/{i}/bboxes"] for i in (0, 1)]
    return Samples(drawn("rpn_assign"), drawn("rcnn_assign"), proposed)


def test_losses_and_gradients_are_the_recorded_ones(oracle):
    """Operators and thread counts differ in the sixth digit, which turns a few ReLUs and bilinear cells over."""
    tolerance = 5e-3
    detector = oracle.load().train()
    losses = detector.losses(batch_of(oracle), samples_of(oracle))
    assert {f"train/loss_sum/{k}" for k in losses} == {k for k in oracle.numbers if k.startswith("train/loss_sum/loss")}
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(oracle[f"train/loss_sum/{name}"].item(), rel=1e-4)
    sum(losses.values()).backward()
    columns = ("parameters", "grad_norm", "requires_grad")
    names, norms, trained = (oracle.numbers[f"train/{column}"].tolist() for column in columns)
    assert {to_theirs(name) for name, _ in detector.named_parameters()} == set(names)
    for name, parameter in detector.named_parameters():
        row = names.index(to_theirs(name))
        assert parameter.requires_grad == trained[row]
        if math.isnan(norms[row]):
            assert parameter.grad is None
        else:
            assert parameter.grad.norm().item() == pytest.approx(norms[row], rel=tolerance)
            if f"train/grads/{names[row]}" in oracle:
                gradient = oracle[f"train/grads/{names[row]}"]
                assert (parameter.grad - gradient).abs().max() <= tolerance * gradient.abs().max()


def test_training_proposals_are_the_recorded_ones_up_to_the_order_of_ties(oracle):
    detector = oracle.load()
    with torch.inference_mode():
        logits, deltas = detector.rpn(detector.pyramid(oracle.batch))
        found = detector.rpn.propose(logits, deltas, oracle.placements, training=True)
    for image, one in enumerate(found):
        recorded = oracle[f"train/train_proposals/{image}/bboxes"]
        distance = (one.boxes[:, None] - recorded).abs().amax(dim=2)
        assert distance.amin(dim=0).max() < 0.01 and distance.amin(dim=1).max() < 0.01


def theirs(matched: torch.Tensor) -> torch.Tensor:
    """MMDetection's numbers: object + 1, 0 background, −1 ignored."""
    return matched + 1


def test_anchors_and_proposals_are_assigned_as_recorded(oracle):
    detector = oracle.load()
    sizes = [tuple(oracle.numbers[f"P{level}#shape"].tolist()[-2:]) for level in range(2, 7)]
    anchors = torch.cat([grid_anchors(size, stride) for size, stride in zip(sizes, STRIDES, strict=True)])
    for image, placement in enumerate(oracle.placements):
        truth = oracle[f"train/gt/{image}/bboxes"]
        own = anchors[_on_photo(sizes, placement.padded_size(), anchors.device)]
        assert len(own) == oracle.numbers[f"train/rpn_assign/{image}/num_priors"]
        assert torch.equal(theirs(assign(own, truth, 0.7, 0.3, 0.3)), oracle[f"train/rpn_assign/{image}/gt_inds"])
        priors, expected = (oracle[f"train/rcnn_assign/{image}/{name}"] for name in ("priors", "gt_inds"))
        assert torch.equal(theirs(assign(priors, truth, 0.5, 0.5, detector.box_head.low_quality)), expected)


def test_low_quality_matches_belong_to_the_object_that_has_no_better_one():
    """Both objects' best candidate is the second; the later object takes it, though the earlier one fits it better."""
    truth = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 25.0]])
    candidates = torch.tensor([[50.0, 50.0, 60.0, 60.0], [0.0, 0.0, 10.0, 14.0], [0.0, 0.0, 10.0, 60.0]])
    iou = torchvision.ops.box_iou(truth, candidates)
    assert iou[0, 1] > iou[1, 1] == iou[1].max() and iou[0].argmax() == 1
    assert assign(candidates, truth, 0.9, 0.3, low_quality=0.3).tolist() == [BACKGROUND, 1, IGNORED]
    assert assign(candidates, truth, 0.9, 0.3).tolist() == [BACKGROUND, IGNORED, IGNORED]
    matcher = torchvision.models.detection._utils.Matcher(0.9, 0.3, allow_low_quality_matches=True)
    assert matcher(iou).tolist()[1] == 0  # torchvision's answer is the trap


def test_without_objects_everything_is_background_and_the_losses_are_finite(thin, random_rcnn):
    from deformscope.fields.field import Placement

    detector = random_rcnn(thin(mask=True)).train()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "masks": torch.zeros(0, 64, 96)}
    losses = detector.losses(Batch([empty], torch.randn(1, 3, 64, 96), (Placement((64, 96)),)))
    assert losses["loss_bbox"] == 0 == losses["loss_rpn_bbox"] == losses["loss_mask"]
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()


def test_what_is_drawn_is_positive_at_most_in_its_share_and_fills_up_with_negatives(generator):
    matched = torch.tensor([0] * 40 + [BACKGROUND] * 500 + [IGNORED] * 30)
    sample = draw(matched, 64, 0.25, generator)
    assert len(sample.positive) == 16 and len(sample.negative) == 48
    assert (matched[sample.positive] == 0).all() and (matched[sample.negative] == BACKGROUND).all()
    assert len(set(sample.negative.tolist())) == 48
    few = draw(matched, 256, 0.25, generator)
    assert len(few.positive) == 40 and len(few.negative) == 216
