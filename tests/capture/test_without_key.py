"""A PyTorch without the private key that capture uses: a plain dispatch mode sees the same."""

import importlib.util

import pytest
import torch
from passes import IMAGE, OPERATORS, Net, seen, told
from test_attention import WIDTH, Network, attention
from torch import nn

from deformscope import capture
from deformscope.capture import known_passes, operator_watch


@pytest.fixture
def keyless(monkeypatch):
    monkeypatch.setattr(operator_watch, "_KEY", None)


def gone(name):
    raise RuntimeError(f"could not parse dispatch key: {name}")


@pytest.mark.parametrize("missing", ["key", "_dispatch_tls_set_dispatch_key_included", "_dispatch_library"])
def test_what_is_missing_is_noticed_at_import(missing, monkeypatch):
    if missing == "key":
        monkeypatch.setattr(torch._C, "_dispatch_key_parse", gone)
    else:
        monkeypatch.delattr(torch._C, missing)
    spec = importlib.util.spec_from_file_location("fresh", operator_watch.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    assert fresh._KEY is None and operator_watch._KEY is not None


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("operator", OPERATORS)
def test_traced_and_recognized_passes_tell_the_same(operator, context, keyless, monkeypatch, traced):
    net, x = Net(operator).eval(), torch.rand(IMAGE)
    with context():
        first = seen(net, x)
        traced.clear()
        again = seen(net, x)
        assert not traced
        known_passes.forget(net)
        monkeypatch.undo()
        usual = seen(net, x)
    assert told(first) == told(again) == told(usual)
    for one, other in zip(again.values(), usual.values(), strict=True):
        torch.testing.assert_close(one.offset, other.offset)
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_attention_is_seen_too(context, keyless):
    torch.manual_seed(0)
    network = Network(attention("deformable_detr"))
    cells = torch.randn(2, 51, WIDTH)
    arguments = torch.randn(2, 3, 40, 56), torch.rand(2, 51, 3, 2), cells, cells
    with context(), capture(network) as fields:
        network(*arguments)
    with pytest.MonkeyPatch.context() as usual:
        usual.setattr(operator_watch, "_KEY", torch._C._dispatch_key_parse(operator_watch.KEY))
        with context(), capture(network) as expected:
            network(*arguments)
    torch.testing.assert_close(fields.attention["cross"].points, expected.attention["cross"].points)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_mode_that_takes_operators_apart_inside_the_block_is_warned_of(context, keyless, recwarn):
    from torch.utils.flop_counter import FlopCounterMode

    net, x = Net().eval(), torch.rand(IMAGE)
    with context():
        with FlopCounterMode(display=False), capture(net) as fields:
            net(x)
        right = told(fields)
        assert not recwarn.list
        known_passes.forget(net)
        for _ in range(2):
            with capture(net) as fields, FlopCounterMode(display=False):
                net(x)
            warned = [str(one.message) for one in recwarn.list]
            recwarn.clear()
            assert (told(fields) == right) == (not warned)
            assert all("took resizes apart" in one and "enter it before capture" in one for one in warned)
        assert bool(warned) == (context is torch.inference_mode)
        assert told(seen(net, x)) == right and not recwarn.list  # what was rough has not been learned


def test_nothing_is_left_behind_also_when_the_block_raises(keyless):
    with pytest.raises(ZeroDivisionError), capture(nn.Identity()):
        _ = 1 / 0
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
