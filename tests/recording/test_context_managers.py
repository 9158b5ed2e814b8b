"""Every deformable convolution is seen, with its name and its place, and the model is left as it was."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from deformscope import CellGrid, DeformscopeError, NoDeformableCall, Placement, capture
from deformscope.ops import deform_conv2d as own_deform_conv2d
from deformscope.recording.capture import placed

theirs = torchvision.ops.deform_conv2d


class Deform(nn.Module):
    """A deformable convolution of unequal geometry whose offsets are known."""

    def __init__(self, channels, operator=theirs, groups=2, modulated=True, seed=0):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 2, generator=random))
        self.operator, self.groups, self.modulated = operator, groups, modulated
        self.geometry = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}

    def forward(self, x):
        n, _, h, w = F.conv2d(x, self.weight, **self.geometry).shape
        random = torch.Generator().manual_seed(1)
        self.offset = torch.randn(n, 2 * self.groups * 6, h, w, generator=random).to(x)
        self.mask = torch.rand(n, self.groups * 6, h, w, generator=random).to(x) if self.modulated else None
        return self.operator(x, self.offset, self.weight.to(x), mask=self.mask, **self.geometry)


class Net(nn.Module):
    def __init__(self, operator=theirs):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.body = nn.ModuleDict({"block": Deform(4, operator)})

    def forward(self, x):
        return self.body["block"](self.stem(x))


CONTEXTS = [torch.enable_grad, torch.no_grad, torch.inference_mode]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("operator", [theirs, own_deform_conv2d])
def test_offsets_modulation_geometry_and_name_are_those_of_the_call(context, operator):
    net = Net(operator)
    with context(), capture(net) as fields:
        net(torch.rand(2, 3, 33, 46))
    assert list(fields) == ["body.block"]
    field, block = fields["body.block"], net.body["block"]
    n, _, h, w = block.offset.shape
    torch.testing.assert_close(field.offset, block.offset.view(n, 2, 6, 2, h, w).movedim(3, -1))
    torch.testing.assert_close(field.modulation, block.mask.view(n, 2, 6, h, w))
    assert (field.kernel_size, field.stride, field.padding, field.dilation) == ((3, 2), (2, 1), (1, 2), (1, 2))
    assert field.input_size == (17, 23)
    assert field.cells.reduction == (2.0, 2.0)
    assert not field.offset.is_inference()
    assert not field.offset.requires_grad


@pytest.mark.parametrize("operator", [theirs, own_deform_conv2d])
def test_the_trace_goes_on_behind_a_deformable_convolution(operator):
    net = nn.Sequential(Net(operator), Deform(4, operator))
    with capture(net) as fields:
        net(torch.rand(1, 3, 33, 46))
    first, second = fields.values()
    assert second.cells == first.output_cells
    assert second.cells.reduction == (4.0, 2.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_kept_as_floats(dtype):
    module = nn.Identity()

    class Stub(nn.Module):
        def forward(self, x):
            return own_deform_conv2d(x, self.offset, torch.rand(4, 4, 3, 3).to(x), padding=1)

    stub = Stub()
    stub.offset = torch.randn(1, 18, 5, 6).to(dtype)
    with capture(nn.Sequential(module, stub)) as fields:
        stub(torch.rand(1, 4, 5, 6).to(dtype))
    (field,) = fields.values()
    assert field.offset.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(field.offset[0, 0, 3, :, :, 1], stub.offset[0, 7].to(field.offset.dtype))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offsets_on_a_gpu_stay_there():
    net = Net().cuda()
    with capture(net) as fields:
        net(torch.rand(1, 3, 33, 46, device="cuda"))
    assert fields["body.block"].offset.is_cuda
    assert not fields["body.block"].to("cpu").offset.is_cuda


def test_a_module_that_runs_twice_is_kept_twice():
    net = Net()
    with capture(net) as fields:
        net(torch.rand(1, 3, 33, 46))
        net(torch.rand(1, 3, 17, 20))
    assert list(fields) == ["body.block", "body.block#2"]
    assert fields["body.block#2"].name == "body.block#2"
    assert fields["body.block"].offset.shape != fields["body.block#2"].offset.shape
    assert fields["body.block#2"].cells.reduction == (2.0, 2.0)


def test_a_functional_call_has_the_name_of_the_module_around_it():
    class Around(nn.Module):
        def forward(self, x):
            return theirs(x, torch.zeros(1, 18, 5, 6), torch.rand(4, 4, 3, 3), padding=1)

    with capture(nn.ModuleDict({"a": nn.Sequential(Around())})) as fields, torch.no_grad():
        Around()(torch.rand(1, 4, 5, 6))  # not a part of the model
    assert list(fields) == ["deform_conv2d"]
    model = nn.ModuleDict({"a": nn.Sequential(Around())})
    with capture(model) as fields:
        model["a"](torch.rand(1, 4, 5, 6))
    assert list(fields) == ["a.0"]


def test_nothing_of_the_model_is_changed_also_when_the_block_raises():
    net = Net().train()
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(2)
    hooks = nn.modules.module
    counts = len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)
    torch.manual_seed(3)
    with pytest.raises(ZeroDivisionError), capture(net.eval()):
        net(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
        _ = 1 / 0
    assert torch.equal(torch.rand(2), expected)
    assert (len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)) == counts
    assert not net.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_the_output_and_its_gradients_are_those_of_a_plain_run():
    net = Net().eval()
    x = torch.rand(1, 3, 33, 46, requires_grad=True)
    plain = torch.autograd.grad(net(x).square().sum(), x)[0]
    with capture(net):
        seen = net(x)
    torch.testing.assert_close(torch.autograd.grad(seen.square().sum(), x)[0], plain)


def test_a_module_that_fails_inside_does_not_confuse_the_names():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError

    net = nn.ModuleDict({"bad": Fails(), "good": Net()})
    with capture(net) as fields:
        with pytest.raises(RuntimeError):
            net["bad"](1)
        net["good"](torch.rand(1, 3, 33, 46))
    assert list(fields) == ["good.body.block"]


def test_a_model_without_deformable_convolutions_gives_a_clear_error():
    message = r"Conv2d: no deformable convolution was called inside the block, and the model did not run in it"
    with pytest.raises(NoDeformableCall, match=message), capture(nn.Conv2d(3, 3, 1)) as fields:
        nn.Conv2d(3, 3, 1)(torch.rand(1, 3, 4, 4))
    assert len(fields) == 0


def test_a_compiled_region_in_which_nothing_can_be_seen_is_named():
    compiled = torch.compile(nn.Conv2d(3, 3, 1), backend="eager")
    with pytest.raises(NoDeformableCall, match=r"torch.compile.*_orig_mod"), capture(compiled):
        pass


def test_a_block_without_calls_says_whether_the_model_ran_in_it():
    from deformscope.detectors.deform import DeformConv

    with pytest.raises(NoDeformableCall, match="the model did not run in it"), capture(Net()):
        pass
    net = nn.Sequential(nn.Conv2d(3, 4, 1), DeformConv(4, 4, offset_mode="none"), DeformConv(4, 4, offset_mode="none"))
    message = r"offset_mode=.none..* 2 deformable layers .*set_offset_mode"
    with pytest.raises(NoDeformableCall, match=message), capture(net):
        net(torch.rand(1, 3, 9, 8))


@pytest.mark.filterwarnings("ignore:.*use_reentrant:UserWarning")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("operator", [theirs, own_deform_conv2d])
def test_what_gradient_checkpointing_computes_again_is_recorded_once(operator, reentrant):
    from torch.utils.checkpoint import checkpoint

    net = Net(operator)
    x = torch.rand(1, 3, 33, 46, requires_grad=True)
    net(x).sum().backward()
    expected = x.grad.clone()
    for passes in (1, 2, 3):
        x.grad = None
        with capture(net) as fields:
            for _ in range(passes):
                y = checkpoint(net, x, use_reentrant=reentrant, preserve_rng_state=True)
                y.sum().backward()
        assert list(fields) == ["body.block", "body.block#2", "body.block#3"][:passes]
        assert x.grad.shape == expected.shape
    with capture(net) as fields:
        loss = sum(checkpoint(layer, net.stem(x), use_reentrant=reentrant).sum() for layer in [net.body["block"]] * 2)
        loss.backward()
    assert list(fields) == ["body.block", "body.block#2"]


def test_an_unknown_name_lists_the_known_ones():
    net = Net()
    with capture(net) as fields:
        net(torch.rand(1, 3, 33, 46))
    with pytest.raises(NoDeformableCall, match=r"no deformable call named 'layer4.1'; captured: 'body.block'"):
        fields["layer4.1"]
    assert list(fields.matching(["block"])) == list(fields.matching(["*blo*"])) == ["body.block"]
    assert "body.block" in fields and "other" not in fields
    assert "OffsetField('body.block': 1 image, 2 groups" in repr(fields)


def test_fields_show_as_a_table_in_notebooks():
    net = Net()
    with capture(net) as fields:
        net(torch.rand(2, 3, 33, 46))
    (field,) = fields.values()
    fields.add(replace(field, name="<b>&", modulation=None))
    shown = fields._repr_html_()
    assert shown.count("<tr>") == 3
    assert "<td>body.block</td><td>2</td><td>3×2 (step 2×1)</td>" in shown
    assert "<td>4×2</td><td>2</td><td>yes</td>" in shown
    assert "&lt;b&gt;&amp;" in shown and "<td>no</td>" in shown


def test_placements_come_from_whoever_prepared_the_photos():
    net = Net()
    two = [Placement((40, 50), scale=(0.5, 0.5)), Placement((33, 46))]
    with capture(net) as fields, placed(two):
        net(torch.rand(2, 3, 33, 46))
    assert fields["body.block"].placements == tuple(two)


def test_torchvisions_own_resize_and_padding_are_read_off_it():
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.transform = GeneralizedRCNNTransform(64, 100, [0.0] * 3, [1.0] * 3)
            self.net = Net()

        def forward(self, images):
            return self.net(self.transform(images)[0].tensors)

    detector = Detector().eval()
    with capture(detector) as fields:
        detector([torch.rand(3, 128, 160), torch.rand(3, 200, 100)])
    first, second = fields["net.body.block"].placements
    assert (first.size, first.scale) == ((128, 160), (0.5, 0.5))
    assert (second.size, second.scale) == ((200, 100), (0.5, 0.5))


def test_a_call_outside_of_any_model_has_no_places():
    with capture(nn.Identity()) as fields:
        theirs(torch.rand(1, 4, 5, 6), torch.zeros(1, 18, 5, 6), torch.rand(4, 4, 3, 3), padding=1)
    field = fields["deform_conv2d"]
    assert (field.cells, field.network_size, field.unplaced) == (None, None, "no model was called")
    with pytest.raises(DeformscopeError, match="no model was called"):
        field.cell_at((2.0, 2.0))
    assert field.at(CellGrid()).cell_at((2.0, 2.0)) == (2, 2)


def test_errors_are_of_one_kind():
    assert issubclass(NoDeformableCall, DeformscopeError)


class Branches(nn.Module):
    """``low`` feeds ``left`` and ``right``; ``left``, summed with its input, feeds ``top``; ``right`` is beside it."""

    def __init__(self, operator):
        super().__init__()
        self.low, self.left, self.right, self.top = (Deform(4, operator) for _ in range(4))

    def forward(self, x):
        low = self.low(x)
        left = self.left(F.relu(low))
        left = left + F.interpolate(low, left.shape[-2:])
        self.right(F.max_pool2d(low, 2))
        return self.top(torch.cat([left[:, :2], left[:, 2:]], 1))


@pytest.mark.parametrize("operator", [theirs, own_deform_conv2d])
def test_a_field_knows_the_layer_below_it_and_not_the_one_beside_it(operator):
    with torch.no_grad(), capture(net := Branches(operator)) as fields:
        net(torch.rand(1, 4, 40, 36))
    # The branch beside it ran last before the top.
    assert [(name, field.below) for name, field in fields.items()] == [
        ("low", ""),
        ("left", "low"),
        ("right", "low"),
        ("top", "left"),
    ]
