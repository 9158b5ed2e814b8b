"""Which implementation runs, and who hears of it."""

import pytest
import torch
from fresh import run_each
from torch.utils._python_dispatch import TorchDispatchMode

from deformscope.errors import DeformscopeError
from deformscope.ops import deform_conv2d, observe
from deformscope.ops.deform_conv import VARIABLE

DEFAULT = "deformscope.ops.deform_conv.default_impl"


@pytest.fixture
def calls(monkeypatch):
    """The calls that are observed."""
    found = []

    def observer(compute, describe):
        found.append(describe(output := compute()))
        return output

    monkeypatch.setattr(observe.local, "observer", observer)
    return found


class Dispatched(TorchDispatchMode):
    """Counts calls of torchvision's operator."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() == "torchvision::deform_conv2d"
        return func(*args, **(kwargs or {}))


def torchvisions(size: int = 24, channels: int = 16, requires_grad: bool = False, **settings) -> bool:
    """Whether a call is made by torchvision's operator."""
    x = torch.randn(1, channels, size, size + 1, requires_grad=requires_grad)
    with Dispatched() as dispatched:
        deform_conv2d(x, torch.randn(1, 18, size, size + 1), torch.randn(4, channels, 3, 3), padding=1, **settings)
    return bool(dispatched.count)


@pytest.fixture(autouse=True)
def unforced(monkeypatch):
    monkeypatch.setattr(DEFAULT, "auto")


def test_every_call_is_observed_exactly_once_whichever_implementation_runs(calls):
    assert torchvisions(impl="torchvision") and len(calls) == 1
    assert not torchvisions(impl="embedding_bag") and len(calls) == 2


@pytest.mark.parametrize("requires_grad", [False, True])
def test_auto_takes_embedding_bag_for_maps_and_torchvision_for_crumbs(requires_grad):
    assert not torchvisions(size=40, requires_grad=requires_grad)
    assert torchvisions(size=2, requires_grad=requires_grad)
    assert torchvisions(size=60, channels=1, requires_grad=requires_grad)


def test_gradients_tip_the_balance_towards_embedding_bag():
    assert torchvisions(size=12, requires_grad=False)
    assert not torchvisions(size=12, requires_grad=True)


def test_the_default_decides_what_auto_means(monkeypatch):
    monkeypatch.setattr(DEFAULT, "torchvision")
    assert torchvisions(size=40)
    assert not torchvisions(size=40, impl="embedding_bag")
    monkeypatch.setattr(DEFAULT, "auto")
    assert not torchvisions(size=40)


def test_the_default_is_the_environments():
    ask = f"from {DEFAULT.rpartition('.')[0]} import default_impl as name; print(name)"
    unset = f"import os; os.environ.pop({VARIABLE!r}, None); "
    told = [f"import os; os.environ[{VARIABLE!r}] = {value!r}; " for value in ("", "embedding_bag")]
    assert run_each([first + ask for first in (unset, *told)]) == ["auto", "auto", "embedding_bag"]


def test_a_mistyped_environment_variable_is_named(monkeypatch):
    monkeypatch.setattr(DEFAULT, "tv")
    with pytest.raises(DeformscopeError, match=f"^{VARIABLE}='tv': expected one of 'auto'"):
        torchvisions()


def test_what_is_observed_holds_the_callers_own_tensors_and_pairs(calls):
    x, offset, weight = torch.randn(1, 4, 9, 7), torch.randn(1, 12, 5, 8), torch.randn(2, 4, 3, 2)
    output = deform_conv2d(x, offset, weight, stride=(2, 1), padding=1, impl="embedding_bag")
    (call,) = calls
    assert call.input is x and call.offset is offset and call.mask is None and call.output is output
    assert (call.kernel_size, call.stride, call.padding, call.dilation) == ((3, 2), (2, 1), (1, 1), (1, 1))


def test_tracing_keeps_torchvisions_operator_in_the_graph():
    weight = torch.randn(16, 16, 3, 3)
    inputs = torch.randn(1, 16, 40, 40), torch.randn(1, 18, 40, 40)
    traced = torch.jit.trace(lambda x, offset: deform_conv2d(x, offset, weight, padding=1), inputs, check_trace=False)
    assert "torchvision::deform_conv2d" in str(traced.graph)


def test_a_second_derivative_is_refused_and_not_silently_zero():
    x = torch.randn(1, 2, 5, 6, requires_grad=True)
    output = deform_conv2d(x, torch.rand(1, 18, 5, 6), torch.randn(2, 2, 3, 3), padding=1, impl="embedding_bag")
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
