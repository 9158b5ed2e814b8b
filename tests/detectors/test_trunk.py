"""Deformable trunks: at first the function of the plain one, frozen below a block, cut after one."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import deformscope
from deformscope.detectors.checkpoints.native import load_trunk
from deformscope.detectors.deform import DeformConv, set_offset_mode
from deformscope.detectors.dense.config import DenseConfig, TrunkConfig
from deformscope.detectors.dense.dense import DenseDetector, SmallDetector
from deformscope.detectors.dense.predictions import LEVEL_RANGES, level_ranges
from deformscope.detectors.dense.trunk import Trunk
from deformscope.errors import DeformscopeError

DEFORMABLE = (1, 2, 7, 9, 17)
"""Blocks with and without stride, the first, which has no expansion, and the last."""


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 255, (70, 100, 3), dtype=np.uint8)


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def with_statistics(trunk):
    """The trunk with running statistics and scales as after training, so that norms do something."""
    generator = torch.Generator().manual_seed(1)
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.running_var, module.weight.data):
                value.uniform_(0.5, 1.5, generator=generator)
            for value in (module.running_mean, module.bias.data):
                value.normal_(0, 0.2, generator=generator)
    return trunk


def test_with_offsets_of_zero_it_is_the_plain_trunk(images):
    plain = with_statistics(Trunk()).double().eval()
    trunk = Trunk(TrunkConfig(deformable=DEFORMABLE)).double().eval()
    trunk.load_published(plain.state_dict())
    images = images.double()
    layers = [module for module in trunk.modules() if isinstance(module, DeformConv)]
    assert len(layers) == len(DEFORMABLE)
    with torch.no_grad():
        expected, found = plain(images), trunk(images)
        assert list(found) == ["stride8", "stride16", "stride32"]
        for name, value in expected.items():
            assert (found[name] - value).abs().max() < 1e-10 * value.abs().max()
        nn.init.constant_(layers[-1].conv_offset.bias, 0.5)
        assert not torch.allclose(trunk(images)["stride32"], expected["stride32"], rtol=1e-3)
        for layer in layers:
            layer.offset_mode = "none"
        assert torch.equal(trunk(images)["stride32"], expected["stride32"])


def test_it_takes_torchvisions_weights_by_their_own_names(images):
    whole = torchvision.models.mobilenet_v2().double().eval()
    cut, images = Trunk(TrunkConfig(deformable=(3,), cut=5)).double().eval(), images.double()
    cut.load_published(whole.state_dict())
    own = {name: value for name, value in cut.state_dict().items() if "conv_offset" not in name}
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in own.items())
    with torch.no_grad():
        expected = whole.features[:6](images)
        assert torch.allclose(cut(images)["stride8"], expected, atol=1e-10 * float(expected.abs().max()))
    with pytest.raises(DeformscopeError, match=r"tensors are not MobileNetV2's in order"):
        cut.load_published({"a": torch.zeros(3)})


@pytest.mark.parametrize(
    "config",
    [
        TrunkConfig(),
        TrunkConfig(deformable=(9, 10), cut=10),
        TrunkConfig(deformable=(9, 10), cut=10, levels=(16,)),
        TrunkConfig(deformable=(9,), thaw=7, cut=12),  # the first trained is the one after a level's
        TrunkConfig(thaw=14),
    ],
)
def test_what_is_frozen_and_what_is_above_are_the_whole(config, images):
    trunk = with_statistics(Trunk(config)).eval()
    frozen = trunk.frozen()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    with torch.no_grad():
        expected, maps = trunk(images), frozen(images)
        kept = {name: value.clone() for name, value in maps.items()}
        found = trunk.above(maps)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert all(torch.equal(maps[name], value) for name, value in kept.items())
    learning = {name for name, parameter in trunk.named_parameters() if parameter.requires_grad}
    below = {id(parameter) for parameter in frozen.parameters()}
    assert learning == {name for name, parameter in trunk.named_parameters() if id(parameter) not in below}
    assert bool(learning) == (config != TrunkConfig())


def test_a_trunk_that_is_trained_from_its_stem_has_no_frozen_part():
    assert Trunk(TrunkConfig(thaw=0)).frozen() is None


def test_the_statistics_stay_frozen_while_scales_learn():
    detector = DenseDetector(DenseConfig(("a",), 16, deform_layers=0, trunk=TrunkConfig(deformable=(9,), cut=10)))
    before = {name: value.clone() for name, value in detector.state_dict().items() if "running" in name}
    assert before
    batch = deformscope.detectors.Batch(
        [{"boxes": torch.tensor([[8.0, 8, 60, 50]]), "labels": torch.tensor([0])}], torch.randn(1, 3, 64, 96)
    )
    sum(detector.train().losses(batch).values()).backward()
    assert all(torch.equal(value, detector.state_dict()[name]) for name, value in before.items())
    features = detector.trunk.features
    assert features[9].conv[1][0].conv_offset.weight.grad.abs().sum() > 0
    assert features[9].conv[0][1].weight.grad.abs().sum() > 0
    assert features[8].conv[0][1].weight.grad is None


def test_capture_knows_the_layers_and_where_their_cells_lie(photo):
    detector = DenseDetector(
        DenseConfig(("a",), 16, deform_layers=0, trunk=TrunkConfig(deformable=(7, 9), cut=10, levels=(16,)))
    ).eval()
    with deformscope.capture(detector) as fields:
        detector(photo)
    assert list(fields) == ["trunk.features.7.conv.1.0", "trunk.features.9.conv.1.0"]
    low, high = fields.values()
    assert low.output_cells.reduction == high.cells.reduction == (16, 16)
    assert low.cells.reduction == (8, 8)
    assert high.below == "trunk.features.7.conv.1.0"
    assert high.source.convolutions == ("trunk.features.9.conv.1.0.conv_offset",)


def test_a_small_trunk_gets_deformable_layers_that_are_plain_ones_at_first(photo):
    torch.manual_seed(3)
    trunk = TrunkConfig(deformable=(2, 3, 4))
    detector = SmallDetector(DenseConfig(("a", "b"), 16, deform_layers=0, trunk=trunk)).eval()
    with deformscope.capture(detector) as fields:
        full = detector(photo, min_score=0)[0]
    assert list(fields) == ["trunk.deform.2.0", "trunk.deform.3.0", "trunk.deform.4.0"]
    set_offset_mode(detector, "none")
    assert torch.allclose(detector(photo, min_score=0)[0]["scores"], full["scores"], atol=1e-5)


def test_ranges_of_sizes_leave_no_object_without_a_level():
    assert level_ranges((8, 16, 32)) == LEVEL_RANGES
    assert level_ranges((16,)) == ((0.0, float("inf")),)
    assert level_ranges((8, 16)) == ((0.0, 64.0), (48.0, float("inf")))
    assert level_ranges((16, 32)) == ((0.0, 140.0), (110.0, float("inf")))


def test_the_packaged_weights_go_into_any_part_of_the_trunk():
    packaged = deformscope.load("packaged").trunk.state_dict()
    trunk = TrunkConfig(deformable=(8, 10), cut=10, levels=(16,), pyramid=False)
    detector = DenseDetector(DenseConfig(("a", "b"), 16, deform_layers=0, trunk=trunk))
    load_trunk(detector, "packaged")
    own = {name: value for name, value in detector.trunk.state_dict().items() if "conv_offset" not in name}
    assert all(torch.equal(value, packaged[name]) for name, value in own.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cut": 18}, r"trunk\.cut: 18; expected a block of mobilenet_v2, 1 to 17, or null"),
        ({"cut": 3}, r"trunk\.cut: 3; expected a block at stride 8 or above"),
        ({"deformable": (9, 11), "cut": 10}, r"trunk\.deformable: \[9, 11\]; .*1 to 10, where the trunk is cut"),
        ({"deformable": (0,)}, r"trunk\.deformable: \[0\]; expected different blocks of mobilenet_v2, 1 to 17"),
        ({"deformable": (9, 9)}, r"trunk\.deformable: \[9, 9\]; expected different"),
        ({"deformable": (9,), "thaw": 10}, r"trunk\.thaw: 10; expected a block from 0 to 9, the lowest deformable"),
        ({"thaw": 18}, r"trunk\.thaw: 18; expected a block from 0 to 17, or null"),
        ({"levels": (8, 32), "cut": 13}, r"trunk\.levels: \[8, 32\]; expected some of \[8, 16\]"),
        ({"levels": ()}, r"trunk\.levels: \[\]; expected some of \[8, 16, 32\]"),
        ({"levels": (32, 8)}, r"trunk\.levels: \[32, 8\]; .*in this order"),
    ],
)
def test_settings_that_cannot_be_are_told_in_one_line(settings, message):
    with pytest.raises(DeformscopeError, match=message) as error:
        TrunkConfig(**settings)
    assert "\n" not in str(error.value)


def test_small_trunks_tell_what_they_cannot_do():
    with pytest.raises(DeformscopeError, match=r"trunk\.deformable: \[5\]; expected different stages, 1 to 4"):
        SmallDetector(DenseConfig(("a",), 16, trunk=TrunkConfig(deformable=(5,))))
    with pytest.raises(DeformscopeError, match="a small detector's trunk has no settings but deformable"):
        SmallDetector(DenseConfig(("a",), 16, trunk=TrunkConfig(cut=10)))
