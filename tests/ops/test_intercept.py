"""What is put in the place of offsets and modulations reaches the operator, whichever it is and whoever calls it."""

import pytest
import torch
import torchvision
from torchvision.ops import DeformConv2d

from deformscope.ops import deform_conv2d
from deformscope.ops.intercept import intercepting

PLACES = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}


def torchvisions(*args, **kwargs):
    return torchvision.ops.deform_conv2d(*args, **kwargs)


def overload(x, offset, weight, stride, padding, dilation, mask=None):
    dummy = offset.new_zeros(len(x), 1) if mask is None else mask
    rest = (*stride, *padding, *dilation, 1, 2)
    call = torch.ops.torchvision.deform_conv2d.default
    return call(x, weight, offset, dummy, bias=x.new_zeros(len(weight)), **_named(rest), use_mask=mask is not None)


def _named(rest):
    names = ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "groups", "offset_groups")
    return dict(zip(names, rest, strict=True))


OPERATORS = {
    "torchvision": torchvisions,
    "overload": overload,
    "ours": lambda *args, **kwargs: deform_conv2d(*args, impl="embedding_bag", **kwargs),
    "ours by torchvision": lambda *args, **kwargs: deform_conv2d(*args, impl="torchvision", **kwargs),
}


@pytest.fixture
def call(generator):
    """Input, offset, weight and modulation in float64: two images, two offset groups, a kernel (3, 2)."""
    shapes = {"x": (2, 4, 7, 9), "offset": (2, 24, 4, 11), "weight": (6, 4, 3, 2), "mask": (2, 12, 4, 11)}
    return {name: torch.randn(*shape, generator=generator).double() for name, shape in shapes.items()}


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("operator", OPERATORS)
def test_the_operator_gets_what_was_put_in_place(call, operator, modulated):
    run, mask = OPERATORS[operator], call["mask"] if modulated else None
    seen = []

    def change(number, got):
        seen.append((number, got.mask))
        modulation = torch.ones_like(call["mask"]) if got.mask is None else got.mask
        return got._replace(offset=2 * got.offset, mask=3 * modulation, weight=-got.weight)

    with intercepting(change):
        got = [run(call["x"], call["offset"], call["weight"], mask=mask, **PLACES) for _ in range(2)]
    assert [number for number, _ in seen] == [0, 1]
    assert all((modulation is not None) == modulated for _, modulation in seen)
    wanted = torchvisions(
        call["x"], 2 * call["offset"], -call["weight"], mask=3 * (call["mask"] if modulated else 1 + 0 * call["mask"]),
        **PLACES,
    )  # fmt: skip
    torch.testing.assert_close(got, [wanted, wanted])
    plain = run(call["x"], call["offset"], call["weight"], mask=mask, **PLACES)  # nothing is left behind
    torch.testing.assert_close(plain, torchvisions(call["x"], call["offset"], call["weight"], mask=mask, **PLACES))


@pytest.mark.parametrize("operator", OPERATORS)
def test_what_was_put_in_place_has_gradients(call, operator):
    share = torch.ones_like(call["mask"], requires_grad=True)
    with intercepting(lambda number, got: got._replace(mask=share)):
        out = OPERATORS[operator](call["x"], call["offset"], call["weight"], **PLACES)
    (gradient,) = torch.autograd.grad(out.sum(), share)
    torch.testing.assert_close(gradient.sum(), out.sum())  # the output is linear in the modulation


def test_modules_of_any_model_are_reached():
    model = torch.nn.ModuleDict({"deform": DeformConv2d(4, 4, 3, padding=1)})
    x, offset = torch.randn(1, 4, 5, 6), torch.randn(1, 18, 5, 6)
    with intercepting(lambda number, got: got._replace(offset=torch.zeros_like(got.offset))):
        got = model["deform"](x, offset)
    layer = model["deform"]
    torch.testing.assert_close(got, torch.nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))


def test_a_block_that_raises_leaves_nothing_behind(call):
    with pytest.raises(ZeroDivisionError), intercepting(lambda number, got: 1 / 0):
        torchvisions(call["x"], call["offset"], call["weight"], **PLACES)
    torchvisions(call["x"], call["offset"], call["weight"], **PLACES)
