"""Wherever torchvision's operator can stand in a graph, deformscope's can: exported, scripted, traced, compiled."""

import jaxtyping
import pytest
import torch
import torchvision
from torch import nn

from deformscope.ops import deform_conv2d as own

theirs = torchvision.ops.deform_conv2d


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Without the checks of shapes at run time, which the tests add and a compiler would follow into."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Layer(nn.Module):
    """A strided, modulated deformable convolution with its offset convolution; unequal sizes."""

    def __init__(self, operator, modulated=True):
        super().__init__()
        self.operator, self.modulated = operator, modulated
        self.geometry = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
        self.conv_offset = nn.Conv2d(4, (3 if modulated else 2) * 6, (3, 2), **self.geometry)
        self.weight, self.bias = nn.Parameter(torch.randn(6, 2, 3, 2)), nn.Parameter(torch.randn(6))

    def forward(self, x):
        raw = self.conv_offset(x)
        mask = raw[:, 12:].sigmoid() if self.modulated else None
        return self.operator(x, raw[:, :12], self.weight, self.bias, mask=mask, **self.geometry)


@pytest.fixture
def layers():
    """The same layer with deformscope's operator and with torchvision's."""
    mine, reference = Layer(own).eval(), Layer(theirs).eval()
    reference.load_state_dict(mine.state_dict())
    return mine, reference


SMALL, LARGE = (2, 4, 20, 18), (3, 4, 57, 44)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_takes_any_size(layers, strict):
    from torch.export import Dim

    mine, reference = layers
    sizes = {0: Dim("n", min=1, max=64), 2: Dim("h", min=8, max=512), 3: Dim("w", min=8, max=512)}
    program = torch.export.export(mine, (torch.rand(SMALL),), dynamic_shapes={"x": sizes}, strict=strict).module()
    for shape in (SMALL, LARGE):
        x = torch.rand(shape)
        torch.testing.assert_close(program(x), reference(x), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*jit.*:DeprecationWarning", "ignore:.*jit.*:FutureWarning")
@pytest.mark.parametrize("numbers", ["pairs", "ints"])
def test_torchscript_compiles_a_module_that_calls_it(numbers):
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_offset, self.weight = nn.Conv2d(4, 18, 3, 2, 1), nn.Parameter(torch.randn(6, 4, 3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            offset = self.conv_offset(x)
            mask = torch.ones_like(offset[:, ::2])
            return own(x, offset, self.weight, stride=(2, 2), padding=(1, 1), mask=mask)

    class Ints(Pairs):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return own(x, self.conv_offset(x), self.weight, None, 2, 1)

    layer = (Pairs if numbers == "pairs" else Ints)().eval()
    scripted = torch.jit.script(layer)
    for shape in (SMALL, LARGE):
        x = torch.rand(shape)
        expected = theirs(x, layer.conv_offset(x), layer.weight, stride=2, padding=1)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(scripted(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*jit.*:FutureWarning")
def test_a_trace_keeps_nan_offsets_outside_of_larger_maps_too(layers):
    mine, reference = layers
    traced = torch.jit.trace(mine, torch.rand(SMALL))
    x = torch.rand(2, 4, 300, 280)
    torch.testing.assert_close(traced(x), reference(x), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        mine.conv_offset.bias[:12] = torch.nan
    torch.testing.assert_close(traced(x), mine.bias[:, None, None].expand_as(traced(x)))


@pytest.mark.parametrize("dynamic", [True, False])
def test_one_graph_without_breaks_when_compiled(layers, dynamic):
    mine, reference = layers
    compiled = torch.compile(mine, backend="eager", fullgraph=True, dynamic=dynamic)
    for shape in (SMALL, LARGE):
        x = torch.rand(shape)
        torch.testing.assert_close(compiled(x), reference(x), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(torch.rand(SMALL)).dtype == torch.bfloat16


def test_gradients_go_through_a_compiled_call(layers):
    mine, reference = layers
    x = torch.rand(SMALL)
    torch.compile(mine, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    reference(x).square().sum().backward()
    for one, other in zip(mine.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)
