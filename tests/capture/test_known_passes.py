"""A recognized pass gives what tracing it would give; one that only looks like a known one does not pass for it."""

import contextlib
import copy
import gc
import warnings
import weakref

import pytest
import torch
from passes import IMAGE, OPERATORS, Deform, Net, seen, theirs, told
from torch import nn

from deformscope import capture
from deformscope.capture import known_passes


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
    from deformscope.capture.context_managers import placed

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


@pytest.mark.parametrize("how", ["positions", "keywords", "both"])
def test_a_model_that_is_called_by_keywords_is_recognized_too(traced, how):
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, pixel_values=None, pixel_mask=None):
            return self.net(pixel_values * pixel_mask)

    model, pixels, mask = Keywords().eval(), torch.rand(IMAGE), torch.ones(2, 1, 1, 1)
    call = {
        "positions": lambda: model(pixels, mask),
        "keywords": lambda: model(pixel_values=pixels, pixel_mask=mask),
        "both": lambda: model(pixels, pixel_mask=mask),
    }[how]
    found = []
    for _ in range(2):
        traced.clear()
        with capture(model) as fields:
            call()
        found.append(told(fields))
        assert bool(traced) == (len(found) == 1)
    assert found[0] == found[1] and [name for name, *_ in found[0]] == ["net.low", "net.side", "net.top"]
    assert not model._forward_pre_hooks and not model._forward_hooks
