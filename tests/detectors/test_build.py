"""The paper's detectors by name, and what their offset modes do to gradients."""

import json
from dataclasses import asdict

import pytest
import torch
import torchvision

from deformscope.detectors import deform
from deformscope.detectors.options import checked_offset_mode
from deformscope.detectors.rcnn.config import Deformable, RCNNConfig, coco_class_names
from deformscope.detectors.rcnn.rcnn import build
from deformscope.errors import DeformscopeError
from deformscope.from_dict import from_dict


@pytest.mark.parametrize(
    ("architecture", "deformable", "layers", "channels"),
    [
        ("faster_rcnn_r50_fpn", "dconv_c3-c5", 13, 18),
        ("mask_rcnn_r50_fpn", "mdconv_c3-c5_group4", 13, 108),
        ("faster_rcnn_r101_fpn", "dconv_c4,c5", 26, 18),
        ("faster_rcnn_r50_fpn", "mdconv_c2", 3, 27),
        ("faster_rcnn_r50_fpn", None, 0, 0),
    ],
)
def test_a_name_says_depth_stages_version_and_groups(architecture, deformable, layers, channels):
    with torch.device("meta"):
        detector = build(architecture, deformable=deformable)
    found = {name: m for name, m in detector.named_modules() if isinstance(m, deform.DeformConv)}
    assert len(found) == layers
    assert {m.conv_offset.out_channels for m in found.values()} == ({channels} if layers else set())
    assert all(name.startswith("backbone.layer") and name.endswith(".conv2") for name in found)
    assert (detector.mask_head is not None) == architecture.startswith("mask")
    assert detector.class_names == coco_class_names()


def bias_gradient(mode: str) -> torch.Tensor:
    torch.manual_seed(1)
    layer = deform.DeformConv(4, 6, stride=2, offset_groups=2, offset_mode=mode)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.2)
    (layer(torch.randn(2, 4, 9, 12)) ** 2).sum().backward()
    return layer.conv_offset.bias.grad.view(2, 9, 2)  # group, kernel point, (dy, dx)


def test_gradients_pass_through_the_split():
    """d_f moves all points alike, so they share one gradient; a shift of all points does nothing to d_k."""
    full, feature, kernel = (bias_gradient(mode) for mode in ("full", "feature", "kernel"))
    assert torch.allclose(feature, feature[:, :1].expand_as(feature), rtol=1e-4)
    assert feature.abs().min() > 0
    assert kernel.sum(dim=1).abs().max() < 1e-4 * kernel.abs().max()
    assert full.std(dim=1).min() > 0 and full.sum(dim=1).abs().min() > 1e-3 * full.abs().max()


def test_without_offsets_only_the_modulation_learns_from_the_offset_convolution():
    torch.manual_seed(1)
    plain, modulated = (deform.DeformConv(4, 6, modulated=v2, offset_mode="none") for v2 in (False, True))
    for layer in (plain, modulated):
        layer(torch.randn(1, 4, 5, 7)).sum().backward()
        assert layer.weight.grad is not None
    assert plain.conv_offset.weight.grad is None
    offsets, modulation = modulated.conv_offset.weight.grad.split([18, 9])
    assert offsets.abs().max() == 0
    assert modulation.abs().max() > 0


@pytest.mark.parametrize("mode", ["none", "feature", "kernel", "full"])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("offset_groups", [1, 2])
def test_a_mode_replaces_the_offsets_and_nothing_else(mode, modulated, offset_groups):
    """The same layer with the offsets replaced by hand, point by point, through torchvision's operator in float64."""
    torch.manual_seed(2)
    layer = deform.DeformConv(4, 6, 3, 2, 1, groups=2, offset_groups=offset_groups, modulated=modulated).double()
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.3)
    torch.nn.init.normal_(layer.conv_offset.bias)
    x = torch.randn(2, 4, 9, 12, dtype=torch.float64)
    raw = layer.conv_offset(x)
    offset, modulation = raw[:, : 18 * offset_groups].clone(), raw[:, 18 * offset_groups :].sigmoid()
    for group in range(offset_groups):
        for axis in (0, 1):  # dy and dx take turns
            points = range(18 * group + axis, 18 * (group + 1), 2)
            mean = sum(offset[:, point] for point in points) / 9
            for point in points:
                own = {"none": 0 * mean, "feature": mean, "kernel": offset[:, point] - mean, "full": offset[:, point]}
                offset[:, point] = own[mode].clone()
    expected = torchvision.ops.deform_conv2d(x, offset, layer.weight, None, 2, 1, 1, modulation if modulated else None)
    deform.set_offset_mode(layer, mode)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)


def test_features_of_a_modulated_network_keep_their_size_without_offsets(thin):
    """Modulation halves every sample at the start: 13 layers without it are thousands of times too large."""
    from deformscope.detectors.rcnn.rcnn import RCNN

    torch.manual_seed(0)
    detector = RCNN(thin("mdconv_c3-c5_group4")).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        full = detector.backbone(images)
        deform.set_offset_mode(detector, "none")
        none = detector.backbone(images)
    for a, b in zip(full, none, strict=True):  # fresh offsets are zero, so nothing may change
        assert torch.allclose(a, b, atol=1e-5 * float(a.abs().max()))


def test_imagenet_weights_of_torchvision_go_into_the_trunk_by_name():
    weights = torchvision.models.resnet50(weights=None).state_dict()
    detector = build("faster_rcnn_r50_fpn")
    missing, unexpected = detector.backbone.load_state_dict(weights, strict=False)
    assert {name.split(".")[-2] for name in missing} == {"conv_offset"}
    assert set(unexpected) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    "name", ["dconv_c3-c5", "mdconv_c3-c5_group4", "dconv_c4", "dconv_c2,c4", "mdconv_c3,c5_group2", "dconv_c2-c5"]
)
def test_deformable_names_survive_a_round_trip(name):
    assert str(Deformable.parse(name)) == name


def test_a_configuration_survives_json(thin):
    for config in (thin(), thin(None), thin("mdconv_c4,c5_group4", mask=True, depth=101, offset_mode="kernel")):
        assert from_dict(RCNNConfig, json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: build("retinanet_r50_fpn"), "architecture='retinanet_r50_fpn'"),
        (lambda: build("faster_rcnn_r50_fpn", deformable="dcn"), "deformable='dcn'"),
        (lambda: build("faster_rcnn_r50_fpn", deformable="dconv_c5-c3"), "lower one first"),
        (lambda: checked_offset_mode("half"), "offset_mode='half': expected one of none, feature, kernel, full"),
        (lambda: build("faster_rcnn_r50_fpn", num_classes=0), "num_classes=0"),
        (lambda: deform.set_offset_mode(torch.nn.Conv2d(1, 1, 1), "none"), "no DeformConv"),
    ],
)
def test_bad_names_are_named(call, said):
    with torch.device("meta"), pytest.raises(DeformscopeError, match=said) as error:
        call()
    assert "\n" not in str(error.value)
