"""Each ailment is planted in a healthy model and found there, and nowhere else."""

import pytest
import torch
from torch import nn
from torchvision.ops import deform_conv2d

from deformscope import DeformscopeError, NoDeformableCall
from deformscope.health.diagnose import as_table, diagnose

ROWS = (-1.0, 0.0, 1.0)


class Layer(nn.Module):
    """One deformable 3×3 whose offset convolution reads a pull to the centre from its input's first two channels."""

    def __init__(self, modulated=False, stride=1, limit=None):
        super().__init__()
        self.stride, self.limit = stride, limit
        self.weight = nn.Parameter(torch.ones(4, 3, 3, 3))
        self.conv_offset = nn.Conv2d(3, 27 if modulated else 18, 3, stride, 1)
        with torch.no_grad():
            for parameter in self.conv_offset.parameters():
                parameter.zero_()
            for k in range(9):
                for axis, place in enumerate((ROWS[k // 3], ROWS[k % 3])):
                    self.conv_offset.weight[2 * k + axis, axis, 1, 1] = 0.3  # towards the centre
                    self.conv_offset.bias[2 * k + axis] = 0.6 * place  # and spread

    def forward(self, x):
        raw = self.conv_offset(x)
        offset, modulation = raw[:, :18], raw[:, 18:].sigmoid() if raw.shape[1] == 27 else None
        if self.limit is not None:
            offset = self.limit(offset)
        return deform_conv2d(x, offset, self.weight, None, self.stride, 1, 1, modulation)


def batch(n=2, h=12, w=18):
    y, x = torch.meshgrid(torch.arange(h).float(), torch.arange(w).float(), indexing="ij")
    return torch.stack([(h - 1) / 2 - y, (w - 1) / 2 - x, torch.ones(h, w)])[None].repeat(n, 1, 1, 1)


def plant(layer, ailment):
    convolution = layer.conv_offset
    with torch.no_grad():
        if ailment == "non-finite":
            convolution.bias[4] = torch.nan
        elif ailment == "dead":
            convolution.weight.zero_()
            convolution.bias.fill_(1e-3)
        elif ailment == "exploding":
            convolution.weight *= 60
        elif ailment == "constant":
            convolution.weight.zero_()
        elif ailment == "transposed":
            swapped = [index ^ 1 for index in range(18)]
            convolution.weight[:18], convolution.bias[:18] = convolution.weight[swapped], convolution.bias[swapped]
        elif ailment == "planar":
            planar = [*range(0, 18, 2), *range(1, 18, 2)]
            convolution.weight[:18], convolution.bias[:18] = convolution.weight[planar], convolution.bias[planar]


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_healthy_model_raises_nothing(modulated, stride):
    found = diagnose(nn.Sequential(Layer(modulated, stride)), batch())
    assert found.findings == ()
    assert not found.broken
    health = found.layers[0]
    assert (health.layer, health.verdict, health.map_size) == ("0", "healthy", (12, 18))
    assert health.modulation == (0.5 if modulated else None)
    assert 0.6 < health.median < health.largest < 6


@pytest.mark.parametrize(
    ("ailment", "broken"),
    [
        ("non-finite", True),
        ("dead", True),
        ("exploding", True),
        ("constant", True),
        ("transposed", False),
        ("planar", False),
    ],
)
def test_an_ailment_is_found_in_its_layer_alone(ailment, broken):
    model = nn.ModuleDict({"well": Layer(), "ill": Layer()})
    plant(model["ill"], ailment)
    found = diagnose(model, batch(), lambda images: (model["well"](images), model["ill"](images)))
    assert [(f.layer, f.ailment) for f in found.findings] == [("ill", ailment)]
    assert found.broken == broken
    assert [layer.verdict for layer in found.layers] == ["healthy", "broken" if broken else "suspect"]
    finding = found.findings[0]
    assert any(sign.isdigit() for sign in finding.evidence)
    assert len(finding.advice) > 20


@pytest.mark.parametrize("limit", [lambda o: o.clamp(-0.5, 0.5), lambda o: 0.5 * torch.tanh(20 * o)])
def test_offsets_stuck_to_a_clamp_are_found(limit):
    found = diagnose(nn.Sequential(Layer(limit=limit)), batch())
    assert [f.ailment for f in found.findings] == ["clamped"]
    assert "±0.5 cells" in found.findings[0].evidence
    assert diagnose(nn.Sequential(Layer(limit=lambda o: o.clamp(-6, 6))), batch()).findings == ()


@pytest.mark.parametrize(("bias", "verdict"), [(-20.0, "broken"), (20.0, "suspect")])
def test_saturated_modulation_is_found(bias, verdict):
    layer = Layer(modulated=True)
    with torch.no_grad():
        layer.conv_offset.bias[18:] = bias
    found = diagnose(nn.Sequential(layer), batch())
    assert [(f.ailment, f.verdict) for f in found.findings] == [("saturated", verdict)]


def test_an_offset_convolution_on_another_grid_is_found():
    layer = Layer(stride=2)
    # As many cells as the layer's own kernel 3, stride 2, padding 1 makes of an even map, half a cell beside them.
    other = nn.Conv2d(3, 18, 2, 2)
    with torch.no_grad():
        other.weight.copy_(layer.conv_offset.weight[:, :, 1:, 1:])
        other.bias.copy_(layer.conv_offset.bias)
    layer.conv_offset = other
    found = diagnose(nn.Sequential(layer), batch())
    assert [f.ailment for f in found.findings] == ["misplaced"]
    assert "(+0.50, +0.50)" in found.findings[0].evidence
    assert "0.conv_offset" in found.findings[0].evidence


def test_offsets_of_another_size_than_the_output_are_found_not_raised():
    layer = Layer()
    layer.conv_offset.padding = (0, 0)
    found = diagnose(nn.Sequential(layer), batch())
    assert found.broken
    assert found.findings[0].ailment == "misplaced"
    assert "refuses" in found.findings[0].evidence


def test_nan_offsets_neither_crash_the_operator_nor_hide_behind_its_own_remedy(monkeypatch):
    from deformscope.detectors.deform import DeformConv

    torch.manual_seed(0)
    for impl in ("torchvision", "embedding_bag"):
        monkeypatch.setattr("deformscope.ops.deform_conv.default_impl", impl)
        model = nn.Sequential(DeformConv(3, 4))
        nn.init.constant_(model[0].conv_offset.bias, torch.nan)
        found = diagnose(model, batch())
        assert [f.ailment for f in found.findings] == ["non-finite"]
        assert "100.0%" in found.findings[0].evidence


def test_a_single_offset_longer_than_the_map_is_suspect():
    layer = Layer()
    images = batch()
    images[0, 0, 5, 7] = 200.0  # the offset convolution reads it at this one cell
    found = diagnose(nn.Sequential(layer), images)
    assert [(f.ailment, f.verdict) for f in found.findings] == [("exploding", "suspect")]


def test_a_detector_takes_photos_and_nothing_of_it_is_changed():
    from deformscope.detectors.dense.config import DenseConfig
    from deformscope.detectors.dense.dense import DenseDetector

    torch.manual_seed(0)
    detector = DenseDetector(DenseConfig(("cat",), channels=16, shorter_side=64, longer_side=96)).eval()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    photos = [torch.randint(0, 255, (3, 60, 90), dtype=torch.uint8) for _ in range(3)]
    found = diagnose(detector, photos)
    assert [f.ailment for f in found.findings] == ["dead"] * 3  # offset convolutions start at zero
    assert found.images == 3
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert not detector.training


def test_what_cannot_be_diagnosed_is_said():
    with pytest.raises(DeformscopeError, match="at least one"):
        diagnose(nn.Sequential(Layer()), [])
    with pytest.raises(NoDeformableCall):
        diagnose(nn.Conv2d(3, 4, 3), batch())
    with pytest.raises(RuntimeError, match="expected input"):
        diagnose(nn.Sequential(nn.Conv2d(5, 3, 1), Layer()), batch())


def test_the_table_and_the_json_say_what_was_found():
    from rich.console import Console

    layer = Layer()
    plant(layer, "dead")
    found = diagnose(nn.Sequential(layer), batch())
    console = Console(width=160, record=True)
    console.print(as_table(found, "model"))
    text = console.export_text()
    assert "broken" in text
    assert "dead: 99 %" in text
    assert found.to_json()["layers"][0]["findings"][0]["ailment"] == "dead"


def test_the_published_channel_layout_of_a_real_network_is_not_suspected(shared):
    from deformscope import OffsetField
    from deformscope.health.checks import channel_order

    oracle = torch.load(
        shared / "oracle" / "faster_rcnn_r50_fpn_dconv_c3-c5_tiny.oracle.pt", map_location="cpu", weights_only=False
    )
    raw = {k: v for k, v in oracle["outputs"].items() if k.startswith("conv_offset_out/")}
    assert len(raw) == 13
    for name, offset in raw.items():
        assert channel_order(name, [OffsetField.from_tensor(offset)]) is None
