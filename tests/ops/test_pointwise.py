"""1×1 convolutions go to oneDNN on one thread, and are the same everywhere else."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import deformscope as ds
from deformscope.errors import DeformscopeWarning
from deformscope.ops.pointwise import Pointwise, make_pointwise

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class Own(nn.Conv2d):
    """Somebody's convolution, which may do anything."""


class Dilations(TorchFunctionMode):
    """Notes the dilation of each convolution."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.conv2d:
            self.seen.append(args[5] if args[5] == 2 else args[5][0])
        return func(*args, **(kwargs or {}))


def dilation(module, *arguments):
    with Dilations() as dilations:
        module(*arguments)
    return dilations.seen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24, 30, 41), (3, 24, 5, 7), (1, 24, 5, 7), (0, 24, 30, 41), (24, 30, 41)])
def test_outputs_and_gradients_are_those_of_a_plain_convolution(threads, shape, bias):
    threads(1)
    plain = nn.Conv2d(24, 17, 1, bias=bias)
    module = copy.deepcopy(plain)
    make_pointwise(module)
    assert type(module) is Pointwise
    results = []
    for one in (plain, module):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        out = one(x)
        (out * torch.linspace(-1, 1, out.shape[-1])).sum().backward()
        results.append((out.detach(), x.grad, *(p.grad for p in one.parameters())))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


@onednn
def test_on_one_thread_and_there_alone_onednn_is_asked_for(threads):
    module = nn.Conv2d(24, 17, 1)
    make_pointwise(module)
    x = torch.randn(1, 24, 30, 41)
    threads(1)
    assert dilation(module, x) == [2]
    assert dilation(module, x[0]) == [1]
    with torch.autograd.profiler.profile() as profiled:
        module(x)
    assert any(event.name == "aten::mkldnn_convolution" for event in profiled.function_events)
    assert dilation(module, x[:, :, :5]) == [1]  # as small as PyTorch gives to neither
    assert dilation(copy.deepcopy(module).double(), x.double()) == [1]
    with torch.autocast("cpu"):
        assert dilation(module, x) == [1]
    with torch.backends.mkldnn.flags(enabled=False):
        assert dilation(module, x) == [1]
    threads(2)
    assert dilation(module, x) == [1]


def test_only_plain_convolutions_of_this_kind_are_changed_and_nothing_of_them():
    others = [
        nn.Conv2d(4, 6, 1, 2),
        nn.Conv2d(4, 6, 1, padding=1),
        nn.Conv2d(4, 6, 1, groups=2),
        nn.Conv2d(4, 6, (1, 3)),
    ]
    others += [nn.Conv2d(4, 6, 1, padding_mode="reflect"), Own(4, 6, 1)]
    model = nn.Sequential(*others, nn.Conv2d(4, 6, 1))
    kinds, weights = [type(one) for one in others], dict(model.named_parameters())
    make_pointwise(model)
    assert [type(one) for one in model] == [*kinds, Pointwise]
    assert all(value is weights[name] for name, value in model.named_parameters())
    again = pickle.loads(pickle.dumps(model))
    assert type(again[-1]) is Pointwise
    assert torch.equal(again[-1].weight, model[-1].weight)


@onednn
def test_a_captured_pass_is_known_again_also_when_the_number_of_threads_has_changed(threads):
    detector, photo = ds.load("packaged"), np.zeros((64, 96, 3), dtype=np.uint8)
    found = []
    for count in (1, 2, 1):
        threads(count)
        with warnings.catch_warnings(), ds.capture(detector) as fields:
            warnings.simplefilter("error", DeformscopeWarning)
            detector(photo)
        found.append(fields)
    for name, field in found[0].items():
        for other in found[1:]:
            assert other[name].centres().equal(field.centres())
            assert other[name].source == field.source
            assert torch.allclose(other[name].offset, field.offset, atol=1e-3)


def test_detectors_have_them_and_load_what_was_saved_without():
    detector = ds.load("packaged")
    kinds = [type(module) for module in detector.modules() if isinstance(module, nn.Conv2d)]
    assert kinds.count(Pointwise) > 40
    kernels = [m.kernel_size for m in detector.modules() if type(m) is nn.Conv2d and m.groups == 1]
    assert (1, 1) not in kernels


@pytest.mark.parametrize(
    "changed",
    [{"stride": (2, 1)}, {"padding": (1, 2)}, {"padding_mode": "circular"}, {"kernel_size": (3, 2)}, {"groups": 2}],
)
def test_what_is_set_later_counts(threads, changed):
    threads(1)
    plain = nn.Conv2d(8, 6, 1)
    module = copy.deepcopy(plain)
    make_pointwise(module)
    for one in (plain, module):
        for name, value in changed.items():
            setattr(one, name, value)
        if "kernel_size" in changed:
            one.weight = nn.Parameter(torch.ones(6, 8, 3, 2))
        if "groups" in changed:
            one.weight = nn.Parameter(torch.ones(6, 4, 1, 1))
    x = torch.randn(2, 8, 30, 41)
    assert torch.allclose(plain(x), module(x), rtol=1e-5, atol=1e-5)
