"""Nothing outlives a block of capture, however it ends; and models can be copied and saved inside one."""

import copy
import gc
import io

import pytest
import torch
import torch.nn.functional as F
from passes import IMAGE, Net, seen, told
from torch import nn
from torch.autograd import Function
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from deformscope import capture
from deformscope.errors import DeformscopeWarning
from deformscope.ops import observe

CALL = nn.Module.__call__


def untouched(*models):
    hooks = [m for model in models for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    return (
        nn.Module.__call__ is CALL
        and not hooks
        and "__init_subclass__" not in vars(Function)
        and not _get_current_dispatch_mode_stack()
        and observe.local.observer is None
    )


def test_two_captures_may_be_closed_in_the_order_in_which_they_were_opened():
    one, other, x = Net().eval(), Net().eval(), torch.rand(IMAGE)
    alone = told(seen(one, x)), told(seen(other, x))
    first, second = capture(one), capture(other)
    fields = first.__enter__()
    more = second.__enter__()
    one(x)
    first.__exit__(None, None, None)
    assert not untouched()
    other(x)
    second.__exit__(None, None, None)
    assert untouched(one, other)
    assert told(fields) == alone[0]
    assert [name for name, *_ in told(more)][-3:] == ["low", "side", "top"]
    F.interpolate(x, scale_factor=2)


def test_an_abandoned_generator_leaves_nothing_when_it_is_collected():
    net, x = Net().eval(), torch.rand(IMAGE)

    def frames():
        with capture(net) as fields:
            for _ in range(3):
                net(x)
                yield fields

    running = frames()
    next(running)
    with capture(net) as fields:
        net(x)
        del running
        gc.collect()
        net(x)
    assert list(fields) == ["low", "side", "top", "low#2", "side#2", "top#2"]
    assert untouched(net)
    F.interpolate(x, scale_factor=2)


def test_a_model_can_be_copied_and_saved_inside_a_block():
    net, x = Net().eval(), torch.rand(IMAGE)
    with capture(net) as fields:
        net(x)
        twin = copy.deepcopy(net)
        torch.save(net, io.BytesIO())
        twin(x)
    assert list(fields) == ["low", "side", "top", *("deform_conv2d" + end for end in ("", "#2", "#3"))]
    assert untouched(net, twin)


def test_a_mode_of_the_users_that_was_entered_inside_stays():
    from torch.utils.flop_counter import FlopCounterMode

    net, x = Net().eval(), torch.rand(IMAGE)
    block = capture(net)
    block.__enter__()
    with FlopCounterMode(display=False) as counter:
        net(x)
        block.__exit__(None, None, None)
        assert _get_current_dispatch_mode_stack()
        before = counter.get_total_flops()
        net(x)
        assert counter.get_total_flops() == 2 * before > 0
    assert untouched(net)


def test_an_exception_leaves_nothing():
    net = Net().eval()
    with pytest.raises(RuntimeError), capture(net):
        net(torch.rand(1, 5, 30, 30))
    assert untouched(net)


class Warped(nn.Module):
    """A sampler of no known family beside one that is known: ALIKED's descriptors, DSConv."""

    def __init__(self):
        super().__init__()
        self.net, self.flow = Net(), nn.Conv2d(3, 2, 3, 1, 1)
        self.head = nn.Identity()

    def forward(self, x):
        self.net(x)
        return self.head(F.grid_sample(x, self.flow(x).permute(0, 2, 3, 1), align_corners=False))


def test_a_sampler_that_is_not_understood_is_named_with_its_module_beside_others():
    net, message = Warped().eval(), "grid_sample in Warped: its places depend on the image"
    with pytest.warns(DeformscopeWarning, match=message) as caught, capture(net) as fields:
        net(torch.rand(IMAGE))
    assert len(caught) == 1 and list(fields) == ["net.low", "net.side", "net.top"]


def test_a_fixed_grid_is_no_learned_sampler(recwarn):
    net = Warped().eval()
    net.flow = nn.Sequential(net.flow, nn.Flatten())

    class Fixed(Warped):
        def forward(self, x):
            self.net(x)
            return F.grid_sample(x, torch.zeros(2, 4, 4, 2), align_corners=False)

    with capture(fixed := Fixed().eval()):
        fixed(torch.rand(IMAGE))
    assert not recwarn.list
