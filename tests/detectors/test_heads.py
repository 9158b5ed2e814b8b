"""The heads of dense detectors, and boxes decoded from the cell or from where its kernel samples."""

import math

import pytest
import torch
from jaxtyping import install_import_hook

import deformscope

with install_import_hook("deformscope.detectors.dense.heads", "typechecker.check"):
    from deformscope.detectors.dense import heads

from deformscope.detectors.dense import DenseConfig, DenseDetector
from deformscope.detectors.dense.config import STRIDES
from deformscope.errors import DeformscopeError
from deformscope.fields.field import OffsetField
from deformscope.from_dict import from_dict

CENTRE = torch.tensor([[0.5, 0.5], [8.5, 0.5], [0.5, 8.5], [8.5, 8.5], [0.5, 16.5], [8.5, 16.5]])  # 3 × 2 cells, (x, y)
DECODES = ("D0", "D0c", "D2")
TARGET = {"boxes": torch.tensor([[8.0, 8.0, 60.0, 50.0]]), "labels": torch.tensor([1])}


def build(**choices):
    torch.manual_seed(3)
    return DenseDetector(DenseConfig(("cat", "dog"), channels=16, **choices)).eval()


def moved(detector, std=0.1):
    """With offsets that are not zero."""
    for name, parameter in detector.heads.named_parameters():
        if "conv_offset" in name:
            torch.nn.init.normal_(parameter, std=std)
    return detector


def maps(n=1):
    random = torch.Generator().manual_seed(5)
    sizes = zip(STRIDES, (32, 96, 320), strict=True)
    return {f"stride{s}": torch.randn(n, c, 96 // s, 64 // s, generator=random) for s, c in sizes}


def test_shared_heads_learn_as_one():
    detector = moved(build(shared=True))
    assert len(list(detector.heads.parameters())) == len(list(build().heads["stride8"].parameters()))
    before = detector.heads["stride8"].box.weight.detach().clone()
    sum(detector.prediction_losses(detector.predict(maps()), [TARGET]).values()).backward()
    torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=1.0).step()
    states = [head.state_dict() for head in detector.heads.values()]
    for name, value in states[0].items():
        assert all(torch.equal(state[name], value) for state in states)
    assert not torch.equal(states[0]["box.weight"], before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_shared_heads_are_kept_and_stay_shared(tmp_path, dtype):
    detector = moved(build(shared=True))
    detector.save(tmp_path / "shared.safetensors", dtype)
    again = deformscope.load(tmp_path / "shared.safetensors")
    assert again.config == detector.config
    assert again.heads["stride8"].deform.weight is again.heads["stride32"].deform.weight
    expected, found = detector.predict(maps()).boxes, again.predict(maps()).boxes
    assert torch.allclose(found, expected, atol=0.5 if dtype == torch.float16 else 1e-4)


def test_the_field_that_is_decoded_is_the_field_that_capture_sees():
    one = moved(build(decode="D2", shared=True, deform_layers=2), 0.05)
    photo = torch.zeros(64, 96, 3, dtype=torch.uint8).numpy()
    with deformscope.capture(one) as fields:
        one(photo)
    names = [f"heads.stride{stride}.{layer}" for stride in STRIDES for layer in ("before.0", "deform")]
    assert list(fields) == names
    with torch.no_grad(), deformscope.capture(one) as fields:
        offsets = one.heads["stride16"](torch.randn(1, 16, 7, 5, generator=torch.Generator().manual_seed(4))).offsets
    for offset, field in zip(offsets, fields.values(), strict=True):
        assert torch.equal(OffsetField.from_tensor(offset).offset, field.offset)


def test_offsets_that_know_the_box_give_the_box():
    """Outer kernel points on the sides, the middle on the centre."""
    truth, stride = torch.tensor([3.0, 7.0, 45.0, 31.0]), 8
    middle, half = (truth[:2] + truth[2:]) / 2, (truth[2:] - truth[:2]) / 2
    offsets = torch.zeros(9, 2, 3, 2)
    for cell, centre in enumerate(CENTRE):
        for k in range(9):
            row, column = divmod(k, 3)
            x = (middle[0] + (column - 1) * half[0] - centre[0]) / stride - (column - 1)
            y = (middle[1] + (row - 1) * half[1] - centre[1]) / stride - (row - 1)
            offsets[k, :, cell // 2, cell % 2] = torch.tensor([y, x])
    found = heads.decoded("D2", CENTRE, stride, torch.zeros(1, 6, 4), [offsets.view(1, 18, 3, 2)], torch.zeros(2))
    assert torch.allclose(found, truth.expand(1, 6, 4), atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", DECODES)
def test_without_offsets_every_way_begins_with_the_same_box(name, layers):
    stride, zero = 16, [torch.zeros(2, 18, 3, 2)] * layers
    raw = torch.full((2, 6, 4), 1.0 if name == "D0" else 0.0)
    half = stride * math.e
    expected = torch.cat([CENTRE - half, CENTRE + half], dim=1).expand(2, 6, 4)
    assert torch.allclose(heads.decoded(name, CENTRE, stride, raw, zero, torch.ones(2)), expected, atol=1e-3)


@pytest.mark.parametrize("name", DECODES)
def test_the_largest_box_is_the_same_in_every_way(name):
    raw = torch.tensor([0.0, 0, 99, 99]).expand(1, 6, 4) if name != "D0" else torch.full((1, 6, 4), 99.0)
    found = heads.decoded(name, CENTRE, 16, raw, [torch.zeros(1, 18, 3, 2)], torch.ones(2))
    half = torch.full((6, 2), 16 * math.exp(5))
    assert torch.allclose(found[0], torch.cat([CENTRE - half, CENTRE + half], dim=1), rtol=1e-4)


def test_stacked_layers_are_composed():
    low, high = torch.zeros(1, 9, 2, 3, 2), torch.zeros(1, 9, 2, 3, 2)
    low[:, :, 0] += 1.0  # the lower layer moves every kernel a cell down, the upper one half a cell to the right
    high[:, :, 1] += 0.5
    shift, _ = heads.kernels([low.flatten(1, 2), high.flatten(1, 2)], 8)
    assert torch.allclose(shift, torch.tensor([4.0, 8.0]).expand(1, 6, 2), atol=1e-5)


def test_d0_is_fcos_to_the_last_digit():
    one = build()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        found = one.predict(maps(2))
        pyramid, boxes = one.fpn(maps(2)), []
        for stride in STRIDES:
            head, x = one.heads[f"stride{stride}"], pyramid[f"stride{stride}"]
            x = torch.relu(head.mix(torch.relu(head.norm(head.deform(x)))))
            reach = head.box(x).flatten(2).transpose(1, 2).clamp(max=5).exp() * stride
            centre = found.centres[found.level == STRIDES.index(stride)]
            boxes.append(torch.cat([centre - reach[..., :2], centre + reach[..., 2:]], dim=-1))
    assert torch.equal(found.boxes, torch.cat(boxes, 1))


@pytest.mark.parametrize("mode", ["none", "feature"])
@pytest.mark.parametrize("name", DECODES)
def test_all_ways_begin_with_the_same_other_predictions_and_learn(name, mode):
    plain, other = build(), build(decode=name, offset_mode=mode)
    with torch.no_grad():
        assert torch.allclose(plain.predict(maps()).cls, other.predict(maps()).cls, atol=1e-5)
    sum(other.prediction_losses(other.predict(maps()), [TARGET]).values()).backward()
    reached = other.heads["stride8"].deform.conv_offset.weight.grad
    assert (reached is not None and bool(reached.abs().sum() > 0)) == (mode != "none")


def test_the_tasks_gradient_into_the_offsets_is_scaled_where_boxes_are_decoded_from_them():
    head = build(decode="D2").heads["stride8"]
    found = []
    for factor in (1.0, 0.1, 0.0):
        head.task_gradient = factor
        output = head(torch.randn(1, 16, 6, 5, generator=torch.Generator().manual_seed(2)))
        (heads.kernels(output.offsets, 8)[1].sum() + 0 * output.logits.sum()).backward()
        grad = head.deform.conv_offset.weight.grad
        found.append(0.0 if grad is None else grad.abs().sum().item())
        head.zero_grad()
    assert found[0] > 0 and found[1] == pytest.approx(0.1 * found[0]) and found[2] == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"decode": "X"}, "decode: 'X'; expected one of 'D0', 'D0c', 'D2'"),
        ({"decode": "D2", "deform_layers": 0}, "decode='D2': with deform_layers=0 the heads have no offsets"),
    ],
)
def test_what_cannot_be_decoded_is_one_clear_line(settings, said):
    with pytest.raises(DeformscopeError, match=said):
        from_dict(DenseConfig, {"class_names": ["one"], **settings})
