"""Attention of the original code and mmcv, whose kernels are compiled: simulated by Functions of the same arguments."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function

import deformscope
from deformscope import NoDeformableCall

SHAPES, HEADS, POINTS, WIDTH = [(5, 7), (3, 4)], 4, 3, 16


class MSDeformAttnFunction(Function):
    """The arguments of the original code and mmcv."""

    @staticmethod
    def forward(
        ctx, value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights, im2col_step
    ):
        MSDeformAttnFunction.given = sampling_locations, attention_weights
        return torch.zeros(*sampling_locations.shape[:2], WIDTH)


class FlashDeformAttnFunction(Function):
    """The arguments of DCNv4's attention: of a head first all locations, then the weights' logits, in halves."""

    @staticmethod
    def forward(
        ctx,
        value,
        value_spatial_shapes,
        value_level_start_index,
        sampling_loc_attn,
        im2col_step,
        K=8,
    ):
        points = sampling_loc_attn.shape[-1] // 3
        MSDeformAttnFunction.given = (
            sampling_loc_attn[..., : 2 * points].float(),
            sampling_loc_attn[..., 2 * points :].float().softmax(-1),
        )
        return torch.zeros(*sampling_loc_attn.shape[:2], WIDTH)


def sampled(value, shapes, locations, weights):
    """One grid_sample per level, as all implementations without a kernel have it."""
    n, q, heads, _, points, _ = locations.shape
    out, start = 0, 0
    for level, (h, w) in enumerate(shapes):
        maps = value[:, start : start + h * w].permute(0, 2, 3, 1).reshape(n * heads, -1, h, w)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        read = F.grid_sample(maps, grid, align_corners=False)
        out = out + (read * weights[:, :, :, level].transpose(1, 2).reshape(n * heads, 1, q, points)).sum(-1)
        start += h * w
    return out.view(n, -1, q).transpose(1, 2)


class Base(nn.Module):
    """The layers of all these modules, with the computation of the locations."""

    def __init__(self, kernel):
        super().__init__()
        self.n_points = self.num_points = POINTS
        self.sampling_offsets = nn.Linear(WIDTH, HEADS * len(SHAPES) * POINTS * 2)
        self.attention_weights = nn.Linear(WIDTH, HEADS * len(SHAPES) * POINTS)
        self.kernel = kernel
        nn.init.normal_(self.sampling_offsets.bias, std=3)

    def attend(self, query, reference, value, shapes):
        n, q, _ = query.shape
        offsets = self.sampling_offsets(query).view(n, q, HEADS, len(shapes), POINTS, 2)
        logits = self.attention_weights(query).view(n, q, HEADS, -1)
        weights = logits.softmax(-1).view(n, q, HEADS, len(shapes), POINTS)
        if reference.shape[-1] == 2:
            cells = torch.tensor([[w, h] for h, w in shapes.tolist()])
            locations = reference[:, :, None, :, None] + offsets / cells[:, None]
        else:
            half = reference[:, :, None, :, None, 2:] * 0.5
            locations = reference[:, :, None, :, None, :2] + offsets / POINTS * half
        value = value.unflatten(-1, (HEADS, -1))
        if self.kernel == "function":
            return MSDeformAttnFunction.apply(value, shapes, torch.tensor([0, 35]), locations, weights, 64)
        if self.kernel == "flash":
            both = torch.cat([locations.flatten(-3).half(), logits.half()], -1)
            return FlashDeformAttnFunction.apply(value, shapes, torch.tensor([0, 35]), both, 64, POINTS)
        if self.kernel == "operator":
            operator = torch.ops.kernels_of_a_hub.ms_deform_attn_forward
            return operator(value, shapes, torch.tensor([0, 35]), locations, weights, 64)
        MSDeformAttnFunction.given = locations, weights
        return sampled(value, shapes.tolist(), locations, weights)


class Original(Base):
    """The signature of the original code, used by position."""

    def forward(
        self, query, reference_points, input_flatten, input_spatial_shapes, input_level_start_index,
        input_padding_mask=None,
    ):  # fmt: skip
        return self.attend(query, reference_points, input_flatten, input_spatial_shapes)

    def call(self, query, reference, value):
        return self(query, reference, value, torch.tensor(SHAPES), torch.tensor([0, 35]))


class Mmcv(Base):
    """The signature of mmcv's module: queries first, images second, and most in keywords."""

    def forward(
        self, query, key=None, value=None, identity=None, query_pos=None, key_padding_mask=None,
        reference_points=None, spatial_shapes=None, level_start_index=None, **kwargs,
    ):  # fmt: skip
        query = (query + query_pos).transpose(0, 1)
        out = self.attend(query, reference_points, value.transpose(0, 1), spatial_shapes)
        return out.transpose(0, 1)

    def call(self, query, reference, value):
        query = query.transpose(0, 1)
        return self(
            query, value=value.transpose(0, 1), query_pos=torch.zeros_like(query), reference_points=reference,
            spatial_shapes=torch.tensor(SHAPES), level_start_index=torch.tensor([0, 35]), other=1,
        )  # fmt: skip


@pytest.fixture(scope="module")
def operator():
    """A kernel of a hub, in a namespace of its own."""
    library = torch.library.Library("kernels_of_a_hub", "FRAGMENT")
    arguments = "Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_loc, Tensor attn_weight"
    library.define(f"ms_deform_attn_forward({arguments}, int im2col_step) -> Tensor")
    library.impl(
        "ms_deform_attn_forward",
        lambda *args: MSDeformAttnFunction.forward(None, *args),
        "CompositeExplicitAutograd",
    )
    yield
    library._destroy()


@pytest.mark.parametrize("context", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("sizes", [2, 4])
@pytest.mark.parametrize("kernel", ["none", "function", "flash", "operator"])
@pytest.mark.parametrize("kind", [Original, Mmcv])
def test_the_original_code_and_mmcv_with_and_without_kernels(kind, kernel, sizes, context, operator):
    torch.manual_seed(0)
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 4, 1), "cross": kind(kernel)})
    reference = torch.rand(2, 6, 2, sizes) + 0.2  # the levels differ, and some lie outside
    for _ in range(2):
        with context(), deformscope.capture(model) as fields:
            model["stem"](torch.rand(2, 3, 20, 28))
            model["cross"].call(torch.randn(2, 6, WIDTH), reference, torch.randn(2, 47, WIDTH))
        (field,) = fields.attention.values()
        locations, weights = (one.detach() for one in MSDeformAttnFunction.given)
        places = locations.reshape(2, 6, HEADS, 2 * POINTS, 2).flip(-1) * torch.tensor([20.0, 28.0])
        torch.testing.assert_close(field.points, places, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(field.weights, weights.reshape(2, 6, HEADS, -1), atol=1e-3, rtol=1e-5)
        assert field.level_sizes == tuple(SHAPES) and field.level.tolist() == [0] * 3 + [1] * 3
        torch.testing.assert_close(
            field.level_reference[..., :2], reference[..., :2].flip(-1) * torch.tensor([20.0, 28.0])
        )


def test_a_kernel_outside_of_any_known_module_is_named_and_not_recorded():
    class Other(nn.Module):
        def forward(self, x):
            return MSDeformAttnFunction.apply(x, None, None, torch.rand(1, 2, 1, 1, 2, 2), torch.rand(1, 2, 1, 1, 2), 1)

    model = Other()
    message = "not understood: MSDeformAttnFunction in Other: it samples outside of a module with layers"
    with pytest.raises(NoDeformableCall, match=message), deformscope.capture(model):
        model(torch.rand(1, 2, 3))


def test_other_users_of_grid_sample_are_no_attention():
    """Point losses, tables of positions and flow, beside attention and inside of it."""

    class Busy(Original):
        def forward(self, *args, **kwargs):
            table = F.interpolate(torch.rand(1, 4, 3, 3), (5, 7), mode="bicubic")
            return super().forward(*args, **kwargs) + table.mean()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.cross = nn.Conv2d(3, 4, 1), Busy("none")

        def forward(self, images, reference):
            maps = self.stem(images)
            F.grid_sample(maps, torch.rand(2, 9, 1, 2) * 2 - 1, align_corners=False)
            self.cross.call(torch.randn(2, 6, WIDTH), reference, torch.randn(2, 47, WIDTH))
            return F.grid_sample(maps, torch.zeros(2, 4, 4, 2), align_corners=True)

    model = Model()
    with deformscope.capture(model) as fields:
        model(torch.rand(2, 3, 20, 28), torch.rand(2, 6, 2, 2))
    assert list(fields.attention) == ["cross"] and fields.attention["cross"].points.shape[3] == 2 * POINTS
    flow = nn.Sequential(nn.Identity())
    with pytest.raises(NoDeformableCall, match="grid_sample ran 1×, in no module"), deformscope.capture(flow):
        F.grid_sample(flow(torch.rand(1, 3, 4, 4)), torch.zeros(1, 4, 4, 2), align_corners=True)


def test_cudnns_sampler_has_no_flags_and_aligned_corners():
    from deformscope.recording.attention import aligned_corners

    assert aligned_corners("aten::cudnn_grid_sampler", (None, None), {})
    assert not aligned_corners("aten::grid_sampler_2d", (None, None, 0, 0, False), {})
    assert aligned_corners("aten::grid_sampler", (None, None, 0, 0), {"align_corners": True})


@pytest.mark.parametrize("aligned", [False, True])
def test_grids_with_aligned_corners_are_converted(aligned):
    class Aligned(Original):
        def attend(self, query, reference, value, shapes):
            n, q, _ = query.shape
            offsets = self.sampling_offsets(query).view(n, q, HEADS, len(SHAPES), POINTS, 2)
            self.attention_weights(query)
            for level, (h, w) in enumerate(SHAPES):
                cells = torch.tensor([w, h])
                place = reference[:, :, None, level, None] + offsets[:, :, :, level] / cells
                # Where the corners' centres are ±1.
                grid = (place * cells - 0.5) / (cells - 1) * 2 - 1 if aligned else 2 * place - 1
                F.grid_sample(torch.rand(n * HEADS, 1, h, w), grid.transpose(1, 2).flatten(0, 1), align_corners=aligned)
            return offsets

    torch.manual_seed(0)
    model = nn.ModuleDict({"cross": Aligned("none")})
    query, reference = torch.randn(2, 6, WIDTH), torch.rand(2, 6, 2, 2)
    with torch.no_grad(), deformscope.capture(model) as fields:
        offsets = model["cross"].call(query, reference, torch.randn(2, 47, WIDTH))
    wanted = reference[:, :, None, :, None] + offsets / torch.tensor([[7, 5], [4, 3]])[:, None]
    size = torch.tensor([5.0, 7.0])  # of the finest map, since no convolution ran
    torch.testing.assert_close(fields.attention["cross"].points, wanted.flatten(3, 4).flip(-1) * size)
