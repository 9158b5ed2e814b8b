"""Autograd Functions whose modules are imported while a block runs, as kernels are that load at the first call."""

import importlib
import sys

import pytest
import torch
from torch import nn
from torch.autograd import Function

from deformscope import capture
from deformscope.recording import functions

MODULE = """
import torch
from torch.autograd import Function

class Base(Function):
    pass

def own(ctx, input, offset, weight, stride=1, padding=0, dilation=1, groups=1, deform_groups=1):
    made = torch.nn.functional.conv2d(input, weight, None, stride, padding)
    return torch.from_numpy(made.detach().numpy().copy())

class DeformConv2dFunction(Base):
    forward = staticmethod(own)

apply = DeformConv2dFunction.apply
"""


class Late(nn.Module):
    """Imports its kernel at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_offset = nn.Conv2d(4, 18, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x):
        self.offset = self.conv_offset(x)
        return importlib.import_module("kernel_of_a_late_module").apply(x, self.offset, self.weight, 1, 1)


@pytest.fixture
def late(tmp_path, monkeypatch):
    (tmp_path / "kernel_of_a_late_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield Late()
    sys.modules.pop("kernel_of_a_late_module", None)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_function_that_is_imported_in_the_block_is_seen_and_put_back_after_it(context, late):
    with context(), capture(late) as fields:
        late(torch.randn(1, 4, 6, 9))
        kernel = sys.modules["kernel_of_a_late_module"]
        assert kernel.DeformConv2dFunction.forward is not kernel.own
    (field,) = fields.values()
    torch.testing.assert_close(field.offset[0, 0].movedim(-1, 1).flatten(0, 1), late.offset[0])
    assert kernel.DeformConv2dFunction.forward is kernel.own
    assert "__init_subclass__" not in vars(Function) and not functions._replaced


def test_classes_that_are_made_in_blocks_within_blocks_and_after_them_are_as_they_were_written():
    def made():
        class Sampler(Function, metaclass=type(Function)):
            @staticmethod
            def forward(ctx, input, offset):
                return input

        return Sampler

    model = nn.Conv2d(1, 1, 1)
    with pytest.raises(RuntimeError, match="the user's own"), capture(model):
        with pytest.raises(ValueError, match="no deformable convolution"), capture(model):
            inner = made()
        assert inner.forward.__wrapped__ is not None  # the outer block looks on
        raise RuntimeError("the user's own")
    assert not hasattr(inner.forward, "__wrapped__") and not hasattr(made().forward, "__wrapped__")
    assert "__init_subclass__" not in vars(Function)
