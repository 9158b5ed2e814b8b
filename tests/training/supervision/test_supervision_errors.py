"""What does not fit is one clear line, before training starts where that can be known."""

import pytest
import torch
from supervised_nets import BOXES, images, net

from deformscope.errors import DeformscopeError
from deformscope.training import OffsetSupervision


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"layers": ["head*"]}, r"layers: 'head\*' matches no deformable convolution; the model has 'one.conv', 'two"),
        ({"layers": []}, r"layers=\[\]: expected patterns of 'one.conv', 'two.conv'"),
        ({"layers": {"two": (9.0, 3.0)}}, r"layers\['two'\]=\(9.0, 3.0\): expected \(least, largest\)"),
        ({"loss": ["center"]}, r"loss=\['center'\]: expected some of 'centre', 'extent'"),
        ({"loss": []}, r"loss=\[\]: expected some of"),
        ({"weight": -1.0}, r"weight=-1.0: expected at least 0"),
        ({"within": "masks"}, r"within='masks': expected 'box' or 'mask'"),
        ({"composed": 0}, r"composed=0: expected at least 1"),
    ],
)
def test_bad_settings_are_one_clear_line_before_training(settings, line):
    with pytest.raises(DeformscopeError, match=line):
        OffsetSupervision(net(), images(1), **settings)


def test_a_kernel_without_sides_is_one_clear_line_before_training():
    with pytest.raises(DeformscopeError, match=r"layer 'one.conv': a kernel of 1×3 spreads over no area.*'extent'"):
        OffsetSupervision(net(kernel=(1, 3)), images(1))
    OffsetSupervision(net(kernel=(1, 3)), images(1), loss="centre")


@pytest.mark.parametrize(
    ("targets", "line"),
    [
        ([BOXES[0]], r"targets: 1 for 2 images; expected a list with one entry an image"),
        ([BOXES[0], {"labels": torch.ones(1)}], r"targets\[1\]: labels; expected 'boxes'"),
        ([torch.ones(2, 5), BOXES[1]], r"targets\[0\]\['boxes'\] of shape \(2, 5\): expected \[t 4\]"),
        ([torch.tensor([[3.0, 5.0, 3.0, 9.0]]), BOXES[1]], r"\[3.0, 5.0, 3.0, 9.0\] has no area"),
        ([torch.tensor([[3.0, 5.0, float("nan"), 9.0]]), BOXES[1]], r"has no area"),
        ([torch.tensor([[3.0, 5.0, float("inf"), 9.0]]), BOXES[1]], r"\[3.0, 5.0, inf, 9.0\] has no area"),
        ([{"boxes": BOXES[0], "ignore": torch.zeros(2, dtype=torch.bool)}, BOXES[1]], r"1 boxes; expected as many"),
    ],
)
def test_bad_targets_are_one_clear_line(targets, line):
    model = net()
    supervision = OffsetSupervision(model, images(1))
    with supervision:
        model(images())
    with pytest.raises(DeformscopeError, match=line):
        supervision.loss(targets)


def test_masks_that_are_missing_or_empty_are_one_clear_line():
    model = net()
    supervision = OffsetSupervision(model, images(1), within="mask")
    with supervision:
        model(images())
    with pytest.raises(DeformscopeError, match=r"targets\[0\]: no 'masks', which within='mask' needs"):
        supervision.loss(BOXES)
    empty = {"masks": torch.zeros(1, 32, 40, dtype=torch.bool)}
    with pytest.raises(DeformscopeError, match=r"targets\[0\]\['masks'\] of shape .*each with a pixel"):
        supervision.loss([empty, empty])


def test_wrong_use_in_a_loop_is_one_clear_line():
    model = net()
    supervision = OffsetSupervision(model, images(1))
    with pytest.raises(DeformscopeError, match=r"layer 'one.conv': not seen with gradients since the last loss"):
        supervision.loss(BOXES)
    with supervision:
        model(images())
        model(images())
    with pytest.raises(DeformscopeError, match=r"layer 'one.conv': called more often than by the example"):
        supervision.loss(BOXES)
    for parameter in [*model.stem.parameters(), *model.one.parameters()]:
        parameter.requires_grad_(False)
    with supervision:
        model(images())
    with pytest.raises(DeformscopeError, match=r"layer 'one.conv': nothing that learns makes its offsets"):
        supervision.loss(BOXES)


def test_checkpointing_that_hides_the_gradient_is_an_error():
    model = net()
    model.frozen_in_checkpoints = True
    supervision = OffsetSupervision(model, lambda: model.two(model.one(model.stem(images(1)))))
    with supervision:
        model(images().requires_grad_())
    with pytest.raises(DeformscopeError, match=r"layer 'one.conv': not seen with gradients.*use_reentrant=False"):
        supervision.loss(BOXES)
