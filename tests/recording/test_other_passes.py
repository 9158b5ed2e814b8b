"""Passes beside other things: threads, captures in one another, modes and compilers."""

import copy
import threading

import pytest
import torch
import torchvision
from passes import IMAGE, Deform, Net, seen, theirs, told
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deformscope import capture


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


def test_the_users_own_modes_work_inside():
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
    if flops == 0 and torch.__version__.startswith("2.4."):
        pytest.skip("this torch's FlopCounterMode counts nothing in inference_mode, without capture either")
    fields = seen(model, x)
    assert model.flops == flops > 0
    # In inference mode this mode takes resizes apart, after which nothing says where cells lie.
    assert [(f.cells, f.unplaced) for f in fields.values()] == [(None, "aten::_unsafe_index in net")] * 3


@pytest.mark.filterwarnings("ignore:.*jit.*:DeprecationWarning", "ignore:.*jit.*:FutureWarning")
@pytest.mark.parametrize("how", ["script", "trace", "export", "kept", "operator"])
def test_calls_by_whatever_way_are_seen(how):
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


def test_photos_of_all_sizes_through_a_detector():
    import numpy as np

    from deformscope.detectors.dense.config import DenseConfig
    from deformscope.detectors.dense.dense import DenseDetector

    torch.manual_seed(0)
    detector = DenseDetector(DenseConfig(("cat",), channels=16, shorter_side=64, longer_side=96)).eval()
    random = np.random.default_rng(0)
    small, wide = (random.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((60, 60), (60, 90)))
    calls = [small, wide, [small, wide], [wide, small, small]]
    first = [seen(detector, photo) for photo in calls]
    again = [seen(detector, photo) for photo in calls]
    assert [told(fields) for fields in again] == [told(fields) for fields in first]
    assert first[2]["heads.stride8.deform#2"].placements[0].size == (60, 90)


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
@pytest.mark.parametrize("warm", [False, True])
def test_compiled_models_run_eagerly_inside_also_those_that_must_not_break(warm):
    net, x = Net().eval(), torch.rand(IMAGE)
    plain = told(seen(net, x))
    whole = torch.compile(net, backend="eager", fullgraph=True)
    part = copy.deepcopy(net)
    part.stem = torch.compile(part.stem, backend="eager", fullgraph=True)
    itself = copy.deepcopy(net)
    itself.stem.compile(backend="eager", fullgraph=True)
    with torch.no_grad():
        if warm:
            whole(x), part(x)
        for _ in range(2):
            assert [one[1] for one in told(seen(whole, x))] == [one[1] for one in plain]
            assert told(seen(part, x)) == told(seen(itself, x)) == plain
        torch.testing.assert_close(whole(x), net(x))
