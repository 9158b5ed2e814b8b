"""Boxes out of offsets: every way begins with today's box, and offsets that know the box give the box."""

import math

import pytest
import torch
from jaxtyping import install_import_hook

with install_import_hook("deformscope.detectors.dense.decode", "typechecker.check"):
    from deformscope.detectors.dense import decode

from deformscope.detectors.dense.config import DenseConfig
from deformscope.detectors.dense.dense import STRIDES, DenseDetector
from deformscope.fields.field import OffsetField

CENTRE = torch.tensor([[0.5, 0.5], [8.5, 0.5], [0.5, 8.5], [8.5, 8.5], [0.5, 16.5], [8.5, 16.5]])  # 3 × 2 cells, (x, y)


def oracle(truth: torch.Tensor, stride: int) -> torch.Tensor:
    """Offsets [1 18 3 2] whose kernels lie on the box: outer points on its sides, the middle on its centre."""
    middle, half = (truth[:2] + truth[2:]) / 2, (truth[2:] - truth[:2]) / 2
    offsets = torch.zeros(9, 2, 3, 2)
    for cell, centre in enumerate(CENTRE):
        for k in range(9):
            row, column = divmod(k, 3)
            x = (middle[0] + (column - 1) * half[0] - centre[0]) / stride - (column - 1)
            y = (middle[1] + (row - 1) * half[1] - centre[1]) / stride - (row - 1)
            offsets[k, :, cell // 2, cell % 2] = torch.tensor([y, x])
    return offsets.view(1, 18, 3, 2)


@pytest.mark.parametrize("name", ["D1", "D2", "D3", "D6", "D5"])
def test_offsets_that_know_the_box_give_the_box(name):
    truth, stride = torch.tensor([3.0, 7.0, 45.0, 31.0]), 8
    kernels = decode.seen([oracle(truth, stride)], stride)
    raw = None if name in decode.FROM_KERNEL_ALONE else torch.zeros(1, 6, 4)
    scale = torch.full((2,), decode.LOG_SCALE[name] - 1)  # exp a = 1, and for the moment √(3/2)
    found = decode.boxes(name, CENTRE, stride, raw, kernels, scale)
    assert torch.allclose(found, truth.expand(1, 6, 4), atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", decode.DECODES)
def test_without_offsets_every_way_begins_with_the_same_box(name, layers):
    stride, zero = 16, [torch.zeros(2, 18, 3, 2)] * layers
    kernels = None if name in decode.FROM_CELL else decode.seen(zero, stride)
    raw = None if name in decode.FROM_KERNEL_ALONE else torch.full((2, 6, 4), decode.BIAS[name])
    scale = torch.full((2,), decode.LOG_SCALE[name]) if name in decode.SCALED else None
    half = stride * math.e
    expected = torch.cat([CENTRE - half, CENTRE + half], dim=1).expand(2, 6, 4)
    assert torch.allclose(decode.boxes(name, CENTRE, stride, raw, kernels, scale), expected, atol=1e-3)


def test_stacked_layers_are_composed():
    low, high = torch.zeros(1, 9, 2, 3, 2), torch.zeros(1, 9, 2, 3, 2)
    low[:, :, 0] += 1.0  # the lower layer moves every kernel a cell down, the upper one half a cell to the right
    high[:, :, 1] += 0.5
    kernels = decode.seen([low.flatten(1, 2), high.flatten(1, 2)], 8)
    assert torch.allclose(kernels.shift, torch.tensor([4.0, 8.0]).expand(1, 6, 2), atol=1e-5)


def test_d3_keeps_the_boxes_gradient_from_the_offsets_and_d2_does_not():
    for name, reached in (("D2", True), ("D3", False)):
        offset = torch.zeros(1, 18, 3, 2, requires_grad=True)
        kernels = decode.seen([offset], 8)
        raw = torch.zeros(1, 6, 4, requires_grad=True)
        decode.boxes(name, CENTRE, 8, raw, kernels, torch.ones(2)).square().sum().backward()
        assert raw.grad is not None and raw.grad.abs().sum() > 0
        assert (offset.grad is not None and bool(offset.grad.abs().sum() > 0)) == reached


def detector(name: str, **settings) -> DenseDetector:
    torch.manual_seed(3)
    return DenseDetector(DenseConfig(("one", "two"), 16, decode=name, **settings)).eval()


def maps() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    sizes = zip(STRIDES, (32, 96, 320), strict=True)
    return {f"stride{s}": torch.randn(2, c, 96 // s, 64 // s, generator=random) for s, c in sizes}


def test_d0_is_fcos_to_the_last_digit():
    one = detector("D0")
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        found = one.predict(maps())
        pyramid, boxes = one.fpn(maps()), []
        for stride in STRIDES:
            head, x = one.heads[f"stride{stride}"], pyramid[f"stride{stride}"]
            x = torch.relu(head.mix(torch.relu(head.norm(head.deform(x)))))
            reach = head.box(x).flatten(2).transpose(1, 2).clamp(max=5).exp() * stride
            centre = found.centres[found.level == STRIDES.index(stride)]
            boxes.append(torch.cat([centre - reach[..., :2], centre + reach[..., 2:]], dim=-1))
    assert torch.equal(found.boxes, torch.cat(boxes, 1))


@pytest.mark.parametrize("mode", ["none", "feature", "kernel", "full"])
@pytest.mark.parametrize("name", decode.DECODES)
def test_all_ways_begin_with_the_same_other_predictions_and_learn(name, mode):
    plain, other = detector("D0"), detector(name, deform_layers=1, offset_mode=mode)
    with torch.no_grad():
        assert torch.allclose(plain.predict(maps()).cls, other.predict(maps()).cls, atol=1e-5)
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 60.0, 50.0]]), "labels": torch.tensor([1])}] * 2
    loss = sum(other.prediction_losses(other.predict(maps()), targets).values())
    loss.backward()
    reached = other.heads["stride8"].deform.conv_offset.weight.grad
    assert (reached is not None and bool(reached.abs().sum() > 0)) == (mode != "none")


def test_the_tasks_gradient_into_the_offsets_is_scaled_where_boxes_are_decoded_from_them():
    one = detector("D1")
    head = one.heads["stride8"]
    found = []
    for factor in (1.0, 0.1, 0.0):
        head.task_gradient = factor
        x = torch.randn(1, 16, 6, 5, generator=torch.Generator().manual_seed(2))
        logits, _, _, offsets, _ = head(x)
        (decode.seen(offsets, 8).half.sum() + 0 * logits.sum()).backward()
        grad = head.deform.conv_offset.weight.grad
        found.append(0.0 if grad is None else grad.abs().sum().item())
        head.zero_grad()
    assert found[0] > 0 and found[1] == pytest.approx(0.1 * found[0]) and found[2] == 0


def test_an_unknown_way_is_one_clear_line():
    from deformscope.errors import DeformscopeError
    from deformscope.from_dict import from_dict

    with pytest.raises(DeformscopeError, match="decode: 'X'; expected one of 'D0', 'D0c'"):
        from_dict(DenseConfig, {"class_names": ["one"], "decode": "X"})


def test_the_field_that_is_decoded_is_the_field_that_capture_sees():
    import deformscope as ds

    one = detector("D2", deform_layers=2)
    with torch.no_grad():
        for layer in one.modules():
            if hasattr(layer, "conv_offset"):
                layer.conv_offset.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
        with ds.capture(one) as fields:
            offsets = one.heads["stride16"](torch.randn(1, 16, 7, 5, generator=torch.Generator().manual_seed(4)))[3]
    for offset, field in zip(offsets, fields.values(), strict=True):
        assert isinstance(field, OffsetField)
        assert torch.equal(OffsetField.from_tensor(offset).offset, field.offset)
    assert list(fields) == ["heads.stride16.before.0", "heads.stride16.deform"]
