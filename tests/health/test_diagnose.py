"""Each ailment is planted in a healthy model and found there, and nowhere else."""

import pytest
import torch
from torch import nn
from torchvision.ops import deform_conv2d

from deformscope import DeformscopeError, NoDeformableCall
from deformscope.health.diagnose import diagnose
from deformscope.health.report import as_table
from deformscope.ops import deform_conv2d as own_deform_conv2d

ROWS = (-1.0, 0.0, 1.0)


class Layer(nn.Module):
    """One deformable 3×3 whose offset convolution reads a pull to the centre from its input's first two channels."""

    def __init__(self, modulated=False, stride=1, limit=None, operator=deform_conv2d, most=1.0):
        super().__init__()
        self.stride, self.limit, self.operator, self.most = stride, limit, operator, most
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
        offset, modulation = raw[:, :18], self.most * raw[:, 18:].sigmoid() if raw.shape[1] == 27 else None
        if self.limit is not None:
            offset = self.limit(offset)
        return self.operator(x, offset, self.weight, None, self.stride, 1, 1, modulation)


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


def two_channels(limit):
    """Two channels press against a limit, the others stay far from it."""

    def clamp(offset):
        pressed = torch.cat([3 * offset[:, :1], -3 * offset[:, 1:2], offset[:, 2:] / 9], dim=1)
        bound = limit(offset)
        return pressed.clamp(-bound, bound)

    return clamp


def test_two_clamped_channels_among_many_are_found():
    found = diagnose(nn.Sequential(Layer(limit=two_channels(lambda offset: 1.5))), batch())
    assert [(f.ailment, f.verdict) for f in found.findings] == [("clamped", "broken")]
    assert "2 of 18 channels lie at a limit of ±1.5 cells" in found.findings[0].evidence
    assert "in 2 of 2 images" in found.findings[0].evidence
    assert diagnose(nn.Sequential(Layer(limit=two_channels(lambda offset: 60))), batch()).findings == ()


def test_a_clamp_that_depends_on_the_photos_size_is_found():
    layer = nn.Sequential(Layer(limit=two_channels(lambda offset: max(offset.shape[-2:]) / 8)))
    found = diagnose(layer, [batch(1, 12, 18), batch(1, 24, 20), batch(1, 40, 48)])
    assert [(f.ailment, f.verdict) for f in found.findings] == [("clamped", "broken")]
    assert "±2.25 to ±6 cells" in found.findings[0].evidence
    assert "in 3 of 3 images" in found.findings[0].evidence


def test_an_empty_part_of_the_photo_and_small_maps_are_no_clamp():
    empty = batch(1, 24, 36)
    empty[:, :, :, 12:] = 0  # two thirds of the cells get the convolution's bias, for one channel its largest value
    layer = Layer()
    with torch.no_grad():
        layer.conv_offset.weight *= 0.03
        layer.conv_offset.bias[0] = 0.9
    assert diagnose(nn.Sequential(layer), empty).findings == ()
    for size in ((4, 4), (3, 9), (5, 6)):
        assert diagnose(nn.Sequential(Layer()), batch(2, *size)).findings == ()


@pytest.mark.parametrize(
    ("most", "bias", "verdict", "said"),
    [
        (1.0, -20.0, "broken", "within 0.02 of 0, in a range of 0..1"),
        (1.0, 20.0, "suspect", "within 0.02 of 1, in a range of 0..1"),
        (2.0, -20.0, "broken", "within 0.02 of 0, in a range of 0..1"),  # nothing shows that it could be 2
        (2.0, 20.0, "suspect", "within 0.02 of 2, in a range of 0..2"),
        (2.0, 0.0, "suspect", "within 0.02 of 1, in a range of 0..1"),
        (5.0, 20.0, "healthy", ""),
    ],
)
def test_saturated_modulation_is_found_at_the_ends_of_its_range(most, bias, verdict, said):
    layer = Layer(modulated=True, most=most)
    with torch.no_grad():
        layer.conv_offset.bias[18:] = bias
    found = diagnose(nn.Sequential(layer), batch())
    assert found.layers[0].verdict == verdict
    assert [f.ailment for f in found.findings] == ["saturated"] * (verdict != "healthy")
    assert not said or said in found.findings[0].evidence


@pytest.mark.parametrize("most", [1.0, 2.0])
def test_modulation_that_varies_is_healthy_also_where_nearly_all_of_it_is_above_1(most):
    layer = Layer(modulated=True, most=most)
    with torch.no_grad():
        layer.conv_offset.weight[18:, 1, 1, 1] = 0.2  # along x, which reaches 9
        layer.conv_offset.bias[18:] = 1.5
    fields = diagnose(nn.Sequential(layer), batch())
    values = fields.fields[0]["0"].modulation
    assert fields.findings == ()
    assert most == 1 or ((values > 0.98).float().mean() > 0.9 and values.max() < 2)


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


@pytest.mark.parametrize("operator", [deform_conv2d, own_deform_conv2d])
@pytest.mark.parametrize(("attribute", "value"), [("padding", (0, 0)), ("stride", (1, 1)), ("channels", 16)])
def test_offsets_that_the_operator_refuses_are_found_in_their_layer_not_raised(operator, attribute, value):
    layers = Layer(operator=operator), Layer(stride=2, operator=operator)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), layers[0], nn.Conv2d(4, 3, 1), layers[1])
    ill = layers[1]
    if attribute == "channels":
        ill.conv_offset = nn.Conv2d(3, value, 3, 2, 1)
    else:
        setattr(ill.conv_offset, attribute, value)
    nn.init.dirac_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    found = diagnose(model, batch(h=24, w=36))
    assert found.broken
    assert [(f.layer, f.ailment) for f in found.findings] == [("3", "misplaced")]
    assert "refuses" in found.findings[0].evidence
    assert [layer.layer for layer in found.layers] == ["1", "3"]
    assert list(found.fields[0]) == ["1"]


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
    message = r"images: batch of shape \(0, 3, 12, 18\): expected at least one image"
    for empty in (batch(0), [batch(2), batch(0)]):
        with pytest.raises(DeformscopeError, match=message):
            diagnose(nn.Sequential(Layer()), empty)
    with pytest.raises(NoDeformableCall):
        diagnose(nn.Conv2d(3, 4, 3), batch())
    with pytest.raises(RuntimeError, match="expected input"):
        diagnose(nn.Sequential(nn.Conv2d(5, 3, 1), Layer()), batch())


def test_layers_without_any_cell_on_some_images_are_judged_by_the_others():
    class Head(nn.Module):
        """A head whose regions are none on dark photos."""

        def __init__(self):
            super().__init__()
            self.body, self.head = Layer(), Layer()

        def forward(self, x):
            self.body(x)
            return self.head(x[: 0 if x.mean() > 0.5 else None])

    nothing = Layer()
    found = diagnose(Head(), [batch(), batch() + 1])
    assert [(layer.layer, layer.verdict) for layer in found.layers] == [("body", "healthy"), ("head", "healthy")]
    assert [layer.layer for layer in diagnose(Head(), batch() + 1).layers] == ["body"]
    with pytest.raises(NoDeformableCall, match="maps without cells"):
        diagnose(Layer(), batch(), lambda images: Layer.forward(nothing, images[:0]))


def test_running_statistics_random_numbers_and_modes_are_as_before():
    normed = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 3, 3))
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.1), Layer(), normed)
    model.train()
    model[0].eval()
    model[0].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = {name: id(value) for name, value in model.named_buffers()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    diagnose(model, [batch(), batch() + 3])
    assert torch.equal(torch.rand(3), expected)
    assert model.training and model[0].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: id(value) for name, value in model.named_buffers()} == kept
    with pytest.raises(RuntimeError, match="expected input"):
        diagnose(nn.Sequential(model, nn.Conv2d(7, 3, 1)), batch())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_files_that_cannot_be_read_are_left_out_and_told(tmp_path, cat):
    from deformscope.detectors.dense.config import DenseConfig
    from deformscope.detectors.dense.dense import DenseDetector

    torch.manual_seed(0)
    detector = DenseDetector(DenseConfig(("cat",), channels=16, shorter_side=64, longer_side=96)).eval()
    hidden = tmp_path / "._cat.png"  # what macOS leaves beside a file
    hidden.write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    found = diagnose(detector, [hidden, str(cat)])
    assert (found.images, len(found.fields)) == (1, 1)
    assert len(found.unreadable) == 1 and str(hidden) in found.unreadable[0]
    assert "1 image, 1 could not be read" in str(found)
    assert found.to_json()["unreadable"] == list(found.unreadable)
    with pytest.raises(DeformscopeError, match=r"none could be read.*\._cat.png"):
        diagnose(detector, [hidden])


def test_the_command_goes_on_after_an_unreadable_file_and_refuses_a_device_that_is_not_there(command, tmp_path, cat):
    import shutil

    shutil.copyfile(cat, tmp_path / "cat.png")
    (tmp_path / "torn.png").write_bytes(b"\0\5\x16\7")
    code, printed, complaints = command("diagnose", tmp_path)
    assert code == 2
    assert "heads.stride16.deform" in printed
    assert complaints.count("\n") == 1 and "torn.png" in complaints
    (tmp_path / "cat.png").unlink()
    code, printed, complaints = command("diagnose", tmp_path)
    assert (code, printed, complaints.count("\n")) == (2, "", 1)
    if not torch.cuda.is_available():
        for name in ("diagnose", "score"):
            code, printed, complaints = command(name, tmp_path, "--device", "cuda")
            assert (code, printed, complaints.count("\n")) == (2, "", 1)
            assert "--device" in complaints


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


def test_a_diagnosis_prints_as_a_table_and_shows_as_one_in_notebooks():
    model = nn.ModuleDict({"well": Layer(), "a[b]<c>": Layer()})
    plant(model["a[b]<c>"], "dead")
    found = diagnose(model, batch(), lambda images: [layer(images) for layer in model.values()])
    text = str(found)
    lines = [line for line in text.splitlines() if "well" in line or "a[b]<c>" in line]
    assert len(lines) == 3
    assert "healthy" in lines[0] and "12×18" in lines[0] and "broken" in lines[1]
    assert lines[2].startswith("a[b]<c>: dead (broken): 99 %")
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 120
    shown = found._repr_html_()
    assert shown.count("<tr>") == 3
    assert "a[b]&lt;c&gt;" in shown and "<b>broken</b>" in shown
    assert "tensor(" not in repr(found)
