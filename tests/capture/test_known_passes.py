"""A recognized pass gives what tracing it would give; one that only looks like a known one does not pass for it."""

import contextlib
import copy
import gc
import threading
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deformscope import capture
from deformscope.capture import known_passes, tensor_trace
from deformscope.ops import deform_conv2d as own_deform_conv2d

theirs = torchvision.ops.deform_conv2d
OPERATORS = [theirs, own_deform_conv2d]


class Deform(nn.Module):
    """A deformable convolution of unequal geometry with an offset convolution."""

    def __init__(self, operator=theirs, channels=4, stride=(2, 1)):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 2))
        self.operator, self.geometry = operator, {"stride": stride, "padding": (1, 2), "dilation": (1, 2)}
        self.conv_offset = nn.Conv2d(channels, 2 * 2 * 6, (3, 2), **self.geometry)

    def forward(self, x):
        return self.operator(x, self.conv_offset(x).clamp(-3, 3), self.weight, **self.geometry)


class Net(nn.Module):
    """Two layers in a row and one beside them, behind all kinds of operators that move the grid."""

    def __init__(self, operator=theirs):
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d((3, 0, 1, 2)), nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.low, self.side, self.top = Deform(operator), Deform(operator), Deform(operator)
        self.start, self.detour = 3, False

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 2)[:, :, self.start : self.start + 20].flip(-1)
        if self.detour:
            x = F.pad(x, (0, 0, 1, 0))[:, :, :-1]
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        low = self.low(x)
        self.side(torch.cat([x[:, :2] + 1, x[:, 2:]], 1))
        return self.top(F.relu(low) * 2)


def seen(net, *inputs):
    with capture(net) as fields:
        for x in inputs:
            net(x)
    return fields


@pytest.fixture
def traced(monkeypatch):
    """How many operators have been traced since."""
    count = []
    see = tensor_trace.TensorTrace.see
    monkeypatch.setattr(tensor_trace.TensorTrace, "see", lambda *a: (count.append(a[1]), see(*a))[1])
    return count


def told(fields):
    """All that is known of fields beside their offsets."""
    return [(name, f.cells, f.below, f.source, f.input_size, f.placements) for name, f in fields.items()]


IMAGE = (2, 3, 120, 90)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_recognized_pass_tells_what_a_traced_one_tells(operator, context, traced):
    net = Net(operator).eval()
    with context():
        first = seen(net, torch.rand(IMAGE))
        assert traced
        traced.clear()
        x = torch.rand(IMAGE)
        again = seen(net, x)
        assert not traced
        known_passes.forget(net)
        fresh = seen(net, x)
    assert told(again) == told(first) == told(fresh)
    assert [f.below for f in again.values()] == ["", "", "low"]
    assert [f.source.convolutions for f in again.values()] == [(f"{n}.conv_offset",) for n in ("low", "side", "top")]
    for one, other in zip(again.values(), fresh.values(), strict=True):
        assert torch.equal(one.offset, other.offset)
    assert not torch.equal(again["top"].offset, first["top"].offset)


def test_several_passes_in_one_block_are_recognized_one_by_one(traced):
    net = Net().eval()
    one, other = seen(net, torch.rand(IMAGE)), seen(net, torch.rand(1, 3, 99, 64))
    traced.clear()
    fields = seen(net, torch.rand(IMAGE), torch.rand(1, 3, 99, 64), torch.rand(IMAGE))
    assert not traced
    assert list(fields) == [n + call for call in ("", "#2", "#3") for n in ("low", "side", "top")]
    assert fields["top#2"].below == "low#2"
    assert fields["top#2"].cells == other["top"].cells
    assert fields["top#3"].cells == one["top"].cells


def changed(net, how):
    if how == "shape":
        return torch.rand(2, 3, 100, 76)
    if how == "mode":
        net.train()
    elif how == "module":
        net.stem[1] = nn.Conv2d(3, 4, 3, 2, 1)
    elif how == "removed":
        del net.stem[0]
    elif how == "wrapped":
        net.stem[0] = nn.Sequential(net.stem[0])
    return torch.rand(IMAGE)


@pytest.mark.parametrize("how", ["shape", "mode", "module", "removed", "wrapped"])
def test_what_decides_grids_and_changes_is_traced_anew_without_a_word(how, traced):
    net = Net().eval()
    before = seen(net, torch.rand(IMAGE))
    traced.clear()
    x = changed(net, how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = seen(net, x)
    assert traced
    fresh = seen(copy.deepcopy(net), x)
    assert told(after) == told(fresh)
    if how in ("shape", "removed"):
        assert told(after) != told(before)


def test_the_number_of_images_does_not_matter(traced):
    net = Net().eval()
    first = seen(net, torch.rand(IMAGE))
    traced.clear()
    assert told(seen(net, torch.rand(5, *IMAGE[1:]))) == told(first)
    assert not traced


@pytest.mark.parametrize("attribute", [("start", 5), ("detour", True), ("geometry", {"stride": (1, 2)})])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_pass_of_the_same_shapes_on_another_way_is_told_and_then_traced(operator, attribute, traced):
    """Neither the shapes nor the modules say that the model now crops, pads or strides elsewhere."""
    net = Net(operator).eval()
    seen(net, torch.rand(IMAGE))
    if attribute[0] == "geometry":
        net.top.geometry |= attribute[1]
        net.top.conv_offset.stride = attribute[1]["stride"]
    else:
        setattr(net, *attribute)
    with pytest.warns(UserWarning, match=r"another way.*capture again"):
        missed = seen(net, torch.rand(IMAGE))
    right = seen(copy.deepcopy(net), torch.rand(IMAGE))
    assert list(missed) == list(right)
    for name, field in missed.items():
        if field.source is None:
            assert field.below is None
        if attribute[0] != "detour":  # then maps of one size have two grids, and the warning says so
            assert (field.cells, field.output_cells) == (right[name].cells, right[name].output_cells)
    traced.clear()
    assert told(seen(net, torch.rand(IMAGE))) == told(right)
    assert traced
    traced.clear()
    assert told(seen(net, torch.rand(IMAGE))) == told(right)
    assert not traced


def test_a_model_that_decides_by_its_data_is_soon_traced_each_time(traced):
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = Deform(), Deform()

        def forward(self, x):
            return (self.one if x.mean() > 0 else self.other)(x)

    net, inputs = Either(), [torch.ones(1, 4, 20, 16), -torch.ones(1, 4, 20, 16)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names = [list(seen(net, inputs[number % 2])) for number in range(8)]
    assert names == [["one"], ["other"]] * 4
    assert len(caught) <= 2
    traced.clear()
    assert seen(net, inputs[1])["other"].source.convolutions == ("other.conv_offset",)


def test_a_call_that_first_comes_after_a_traced_pass_has_the_name_of_its_weight():
    class Longer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.depth = nn.ModuleList(Deform(stride=(1, 1)) for _ in range(3)), 2

        def forward(self, x):
            for layer in self.layers[: self.depth]:
                x = layer(x)
            return x

    net, x = Longer(), torch.rand(1, 4, 20, 16)
    seen(net, x)
    net.depth = 3
    with pytest.warns(UserWarning, match=r"layers\.2: the model went another way"):
        fields = seen(net, x)
    assert list(fields) == ["layers.0", "layers.1", "layers.2"]
    assert [f.below for f in fields.values()] == ["", "layers.0", None]
    assert fields["layers.2"].cells == seen(copy.deepcopy(net), x)["layers.2"].cells


def test_no_model_is_kept_alive_and_none_is_taken_for_another():
    net = Net().eval()
    seen(net, torch.rand(IMAGE))
    seen(net, torch.rand(IMAGE))
    parts = [weakref.ref(net), *(weakref.ref(module) for module in net.modules())]
    gc.collect()
    seen(net, torch.rand(IMAGE))
    gc.disable()  # not even until the next collection
    try:
        del net
        assert not any(part() for part in parts)
    finally:
        gc.enable()


def test_a_pass_that_broke_off_is_not_taken_for_a_whole_one(traced):
    net, x = Net().eval(), torch.rand(IMAGE)
    net.top.operator = None
    with capture(net) as fields:
        with pytest.raises(TypeError):
            net(x)
        net.top.operator = theirs
        traced.clear()
        net(x)
        assert traced
    assert list(fields) == ["low", "side", "low#2", "side#2", "top"]
    assert fields["top"].below == "low#2"
    with pytest.raises(KeyboardInterrupt), capture(net):
        net.top.register_forward_pre_hook(interrupt)
        net(x)
    assert not net._forward_hooks
    net.top._forward_pre_hooks.clear()
    assert list(seen(net, x)) == ["low", "side", "top"]


def test_a_batch_that_broke_off_is_not_taken_for_a_whole_one(traced):
    from deformscope import Placement
    from deformscope.capture.recorder import placed

    net = Net().eval()
    for broken in (True, False, False):
        traced.clear()
        error = pytest.raises(ZeroDivisionError) if broken else contextlib.nullcontext()
        with capture(net.low) as fields, error, placed([Placement((120, 90))] * 2):
            x = net.stem(torch.rand(IMAGE))
            net.low(x)
            1 / (not broken)
            net.low(x.relu())
    assert not traced
    assert list(fields) == ["Deform", "Deform#2"]
    assert fields["Deform#2"].source.convolutions == ("conv_offset",)


def interrupt(*_):
    raise KeyboardInterrupt


def test_an_output_that_comes_back_keeps_its_place_in_the_first_input():
    """Recurrent models, and layers that the user calls behind the captured one."""
    net = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), Deform(stride=(1, 1)))

    def run():
        with capture(net) as fields:
            y = net(torch.rand(1, 4, 80, 72))
            net(y)
            theirs(y * 2, torch.zeros(1, 18, *y.shape[-2:]), torch.rand(4, 4, 3, 3), padding=1)
        return fields

    first, again = run(), run()
    assert told(again) == told(first)
    assert [f.cells.reduction for f in first.values()] == [(2, 2), (4, 4), (2, 2)]
    assert [f.below for f in first.values()] == ["", "1", "1"]


def test_threads_see_their_own_passes_only():
    nets, found, gate = [Net().eval(), Net().eval()], {}, threading.Barrier(2)

    def run(number):
        torch.set_num_threads(1)
        for call in range(4):
            with capture(nets[number]) as fields:
                gate.wait()
                nets[number](torch.rand(1, 3, 100 + 20 * number, 80))
                gate.wait()
            found[number, call] = told(fields)

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    with capture(nets[0]) as fields:
        for thread in threads:
            thread.start()
        nets[0](torch.rand(IMAGE))
        for thread in threads:
            thread.join()
    assert list(fields) == ["low", "side", "top"]
    for number in (0, 1):
        assert len({str(found[number, call]) for call in range(4)}) == 1
        assert [name for name, *_ in found[number, 0]] == ["low", "side", "top"]


def test_captures_inside_one_another_see_the_same():
    net, x = Net().eval(), torch.rand(IMAGE)
    for _ in range(3):
        with capture(net) as outer:
            net(x)
            with capture(net.top) as inner, FlopCounterMode(display=False):
                net(x)
        assert list(outer) == ["low", "side", "top", "low#2", "side#2", "top#2"]
        assert list(inner) == ["deform_conv2d", "deform_conv2d#2", "Deform"]
        assert inner["Deform"].cells == outer["top"].cells
        assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_a_part_of_the_model_captured_alone_has_its_place_in_the_whole():
    net, x = Net().eval(), torch.rand(IMAGE)
    whole = seen(net, x)
    for _ in range(2):
        with capture(net.top) as fields:
            net(x)
        assert fields["Deform"].cells == whole["top"].cells
        assert fields["Deform"].below == "deform_conv2d"


@pytest.mark.parametrize("recognized", [False, True])
def test_the_users_own_modes_work_inside(recognized):
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.flops = Net(), 0

        def forward(self, x):
            with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                y = self.net(x)
            self.flops = counter.get_total_flops()
            with torch.inference_mode(False):
                return y.clone() + nn.Parameter(torch.ones(1))

    model, x = Counted().eval(), torch.rand(IMAGE)
    model(x)
    flops = model.flops
    fields = [seen(model, x) for _ in range(1 + recognized)]
    assert model.flops == flops > 0
    assert told(fields[-1]) == told(fields[0])
    assert [f.cells for f in fields[0].values()] == [f.cells for f in seen(model.net, x).values()]


@pytest.mark.filterwarnings("ignore:.*jit.*:DeprecationWarning", "ignore:.*jit.*:FutureWarning")
@pytest.mark.parametrize("how", ["script", "trace", "export", "kept", "operator"])
def test_calls_by_whatever_way_are_seen_in_a_recognized_pass_too(how):
    kept = torch.ops.torchvision.deform_conv2d.default

    def by_operator(x, offset, weight, stride, padding, dilation):
        none = torch.zeros(len(x), 1)
        return (kept if how == "kept" else torch.ops.torchvision.deform_conv2d)(
            x, weight, offset, none, torch.zeros(4), *stride, *padding, *dilation, 1, 2, False
        )

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.offset = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 18, 3, padding=1)
            self.deform = torchvision.ops.DeformConv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = self.first(x)
            return self.deform(x, self.offset(x))

    plain, x = Layer().eval(), torch.rand(1, 4, 30, 26)
    model = {
        "script": lambda: torch.jit.script(plain),
        "trace": lambda: torch.jit.trace(plain, x),
        "export": lambda: torch.export.export(plain, (x,)).module(),
    }.get(how, lambda: Net(by_operator).eval())()
    if how in ("kept", "operator"):
        x = torch.rand(IMAGE)
    first, second = seen(model, x), seen(model, x)
    assert told(second) == told(first)
    if how in ("script", "trace", "export"):
        (field,), (expected,) = second.values(), seen(plain, x).values()
        assert field.cells == expected.cells
        assert torch.allclose(field.offset, expected.offset, atol=1e-5)
    else:
        assert list(second) == ["low", "side", "top"]


def test_offsets_that_the_model_repairs_itself_are_known_to_have_been_broken():
    net = Net().eval()
    for x in (torch.rand(IMAGE), torch.rand(IMAGE)):
        net.low.operator = lambda x, offset, *a, **k: theirs(x, offset.nan_to_num(0, 0, 0), *a, **k)
        with torch.no_grad():
            net.low.conv_offset.bias[:6] = torch.nan
        fields = seen(net, x)
        assert fields["low"].non_finite == pytest.approx(6 / 24)
        assert torch.isfinite(fields["low"].offset).all()
        assert fields["side"].non_finite == 0


def test_a_detector_of_torchvisions_places_its_photos_in_recognized_passes_too():
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.transform = GeneralizedRCNNTransform(64, 100, [0.0] * 3, [1.0] * 3)
            self.net = Net()

        def forward(self, images):
            return self.net(self.transform(images)[0].tensors)

    detector = Detector().eval()
    detector.net.start = 0
    photos = [torch.rand(3, 128, 160), torch.rand(3, 200, 100)]
    first = seen(detector, photos)
    again = seen(detector, photos)
    assert told(again) == told(first)
    assert [p.size for p in again["net.top"].placements] == [(128, 160), (200, 100)]


def test_photos_of_all_sizes_through_a_detector(traced):
    import numpy as np

    from deformscope.detectors.dense.config import DenseConfig
    from deformscope.detectors.dense.dense import DenseDetector

    torch.manual_seed(0)
    detector = DenseDetector(DenseConfig(("cat",), channels=16, shorter_side=64, longer_side=96)).eval()
    random = np.random.default_rng(0)
    small, wide = (random.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((60, 60), (60, 90)))
    calls = [small, wide, [small, wide], [wide, small, small]]
    first = [seen(detector, photo) for photo in calls]
    traced.clear()
    again = [seen(detector, photo) for photo in calls]
    assert [told(fields) for fields in again] == [told(fields) for fields in first]
    assert "aten::add" not in traced and len(traced) < 400  # around the network's passes a few operators are
    assert first[2]["heads.stride8.deform#2"].placements[0].size == (60, 90)


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
@pytest.mark.parametrize("warm", [False, True])
def test_compiled_models_run_eagerly_inside_also_those_that_must_not_break(warm):
    net, x = Net().eval(), torch.rand(IMAGE)
    plain = told(seen(net, x))
    whole = torch.compile(net, backend="eager", fullgraph=True)
    part = copy.deepcopy(net)
    part.stem = torch.compile(part.stem, backend="eager", fullgraph=True)
    with torch.no_grad():
        if warm:
            whole(x), part(x)
        for _ in range(2):
            assert [one[1] for one in told(seen(whole, x))] == [one[1] for one in plain]
            assert told(seen(part, x)) == plain
        torch.testing.assert_close(whole(x), net(x))
