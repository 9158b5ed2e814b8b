"""mmcv's own layers and kernels, where mmcv is installed: the field says where they sample."""

import pytest
import torch
import torchvision
from torch import nn

from deformscope import capture


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("modulated", [False, True])
def test_mmcvs_own_kernels_sample_where_their_fields_say(modulated):
    ops = pytest.importorskip("mmcv.ops")
    torch.manual_seed(0)
    kind = ops.ModulatedDeformConv2dPack if modulated else ops.DeformConv2dPack
    layer = kind(4, 6, (3, 2), stride=2, padding=1, dilation=2, deform_groups=2, bias=False)
    nn.init.normal_(layer.conv_offset.weight, std=0.3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), layer)
    for _ in range(2):
        with torch.no_grad(), capture(model) as fields:
            out = model(x := torch.randn(2, 3, 26, 32))
        (field,) = fields.values()
        assert field.name == "1" and field.source.convolutions == ("1.conv_offset",)
        n, g, k, h, w, _ = field.offset.shape
        offset = field.offset.movedim(-1, 3).reshape(n, g * k * 2, h, w)
        mask = None if field.modulation is None else field.modulation.reshape(n, g * k, h, w)
        assert (mask is not None) == modulated
        geometry = {"stride": field.stride, "padding": field.padding, "dilation": field.dilation}
        with torch.no_grad():
            again = torchvision.ops.deform_conv2d(model[0](x), offset, layer.weight, mask=mask, **geometry)
        torch.testing.assert_close(again, out, atol=1e-5, rtol=1e-5)


def test_mmcvs_own_attention_is_read():
    ops = pytest.importorskip("mmcv.ops")
    torch.manual_seed(0)
    layer = ops.MultiScaleDeformableAttention(16, num_heads=4, num_levels=2, num_points=3, batch_first=True)
    nn.init.normal_(layer.sampling_offsets.weight)
    model = nn.ModuleDict({"cross": layer})
    query, reference, shapes = torch.randn(2, 5, 16), torch.rand(2, 5, 2, 2), torch.tensor([[5, 7], [3, 4]])
    with torch.no_grad(), capture(model) as fields:
        layer(
            query, value=torch.randn(2, 47, 16), reference_points=reference, spatial_shapes=shapes,
            level_start_index=torch.tensor([0, 35]), query_pos=torch.zeros_like(query),
        )  # fmt: skip
        offsets = layer.sampling_offsets(query).view(2, 5, 4, 2, 3, 2)
        weights = layer.attention_weights(query).view(2, 5, 4, 6).softmax(-1)
    field = fields.attention["cross"]
    wanted = reference[:, :, None, :, None] + offsets / shapes.flip(-1)[:, None]
    # No convolution has told the input's size: px are cells of the finest map.
    torch.testing.assert_close(field.points, wanted.flatten(3, 4).flip(-1) * torch.tensor([5.0, 7.0]))
    torch.testing.assert_close(field.weights, weights)
