"""Samplers of plain operators: the pure-PyTorch DeformConv2d, DCNv3_pytorch and DAT, written anew by their rules."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from test_kernels import GROUPS, WIDTH, DCNv3Function, by_hand
from torch import nn

from deformscope import NoDeformableCall, capture


class Copied(nn.Module):
    """The rules of the much copied module: planar offsets (N dy, N dx), cells counted from 1 on the padded map, a
    convolution of kernels laid side by side; at borders it clamps."""

    def __init__(self, kernel_size=3, padding=1, stride=1, modulation=True):
        super().__init__()
        self.kernel_size, self.padding, self.stride = kernel_size, padding, stride
        self.conv = nn.Conv2d(4, 5, kernel_size, stride=kernel_size, bias=False)
        self.p_conv = nn.Conv2d(4, 2 * kernel_size**2, 3, padding=1, stride=stride)
        if modulation:
            self.m_conv = nn.Conv2d(4, kernel_size**2, 3, padding=1, stride=stride)

    def forward(self, x):
        offset, k = self.p_conv(x), self.kernel_size
        weight = self.m_conv(x).sigmoid() if hasattr(self, "m_conv") else torch.ones(1)
        n, _, h, w = offset.shape
        x = F.pad(x, [self.padding] * 4)
        near = torch.arange(k) - k // 2
        rows, columns = (1 + self.stride * torch.arange(size) for size in (h, w))
        y = near.repeat_interleave(k).view(-1, 1, 1) + rows[:, None] + offset[:, : k * k]
        z = near.repeat(k).view(-1, 1, 1) + columns + offset[:, k * k :]
        y, z = y.clamp(0, x.shape[2] - 1), z.clamp(0, x.shape[3] - 1)
        read = torch.zeros(n, 4, k * k, h, w)
        for row, share in ((y.floor(), 1 - y % 1), (y.floor() + 1, y % 1)):
            for column, part in ((z.floor(), 1 - z % 1), (z.floor() + 1, z % 1)):
                at = (row.clamp(max=x.shape[2] - 1) * x.shape[3] + column.clamp(max=x.shape[3] - 1)).long()
                values = x.flatten(2).gather(2, at.flatten(1)[:, None].expand(-1, 4, -1)).view_as(read)
                read = read + values * (share * part)[:, None]
        tiles = (read * weight[:, None]).view(n, 4, k, k, h, w).permute(0, 1, 4, 2, 5, 3)
        return self.conv(tiles.reshape(n, 4, h * k, w * k))


@pytest.mark.parametrize("modulation", [True, False])
@pytest.mark.parametrize(("kernel", "padding", "stride"), [(3, 1, 1), (3, 1, 2), (5, 1, 1), (5, 2, 1), (2, 1, 1)])
def test_the_copied_module_is_torchvisions_operator_where_it_does_not_clamp(kernel, padding, stride, modulation):
    torch.manual_seed(0)
    layer = Copied(kernel, padding, stride, modulation)
    nn.init.normal_(layer.p_conv.weight, std=0.2)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), layer), torch.randn(2, 3, 26, 32)
    for _ in range(2):
        with torch.no_grad(), capture(model) as fields:
            out = model(x)
        assert list(fields) == ["1"]
        field = fields["1"]
        assert field.source.convolutions == ("1.p_conv",) and field.cells.reduction == (2, 2)
        points = field.sampling_points()
        sizes = torch.tensor(field.input_size)
        inside = ((points >= 0) & (points <= sizes - 1)).all(-1).all(2)[:, 0]
        assert 0.2 < inside.float().mean() < 1
        with torch.no_grad():
            maps = model[0](x)
        if (kernel, padding, stride) == (3, 1, 1):
            n, g, k, h, w, _ = field.offset.shape
            offset = field.offset.movedim(-1, 3).reshape(n, g * k * 2, h, w)
            mask = field.modulation[:, 0] if modulation else None
            given = torchvision.ops.deform_conv2d(maps, offset, layer.conv.weight, padding=1, mask=mask)
        else:  # torchvision's output has the size of the geometry, which is another where this module is off by a cell
            grid = (points[:, 0] / (sizes - 1) * 2 - 1).flip(-1).flatten(1, 2)
            read = F.grid_sample(maps, grid, align_corners=True, padding_mode="border")
            read = read.unflatten(2, (points.shape[2], -1))
            read = read if field.modulation is None else read * field.modulation[:, 0, None]
            given = torch.einsum("nckhw,ock->nohw", read, layer.conv.weight.flatten(2))
        apart = (given - out).abs().amax(dim=1)
        assert apart[inside].max() < 1e-5


def test_a_p_conv_with_points_of_its_own_is_named_and_not_recorded():
    class Arbitrary(Copied):
        def __init__(self):
            super().__init__()
            self.p_conv = nn.Conv2d(4, 2 * 5, 3, padding=1)

        def forward(self, x):
            return self.p_conv(x)

    model = nn.Sequential(Arbitrary())
    with pytest.raises(NoDeformableCall, match="not understood: 0: its p_conv makes 10 channels"), capture(model):
        model(torch.randn(1, 4, 8, 8))
    model[0].num_param = 5
    with pytest.raises(NoDeformableCall, match="its p_conv moves num_param points that lie on no"), capture(model):
        model(torch.randn(1, 4, 8, 8))


@pytest.mark.filterwarnings("error")
def test_layers_of_these_names_in_other_modules_are_nothing():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.p_conv, self.conv = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.conv(self.p_conv(x))

    model = nn.Sequential(Other(), Copied())
    with capture(model) as fields:
        model(torch.randn(1, 4, 8, 8))
    assert list(fields) == ["1"]


class DCNv3(nn.Module):
    """InternImage's module, computed by grid_sample of a padded map, or by the (simulated) kernel."""

    def __init__(self, compiled, offset_scale=1.5, remove_center=0, stride=2):
        super().__init__()
        channels = GROUPS * WIDTH
        self.group, self.offset_scale, self.remove_center = GROUPS, offset_scale, remove_center
        self.kernel_size, self.stride, self.pad, self.dilation = 3, stride, 1, 1
        self.dw_conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels)
        points = 9 - remove_center
        self.offset, self.mask = nn.Linear(channels, GROUPS * points * 2), nn.Linear(channels, GROUPS * points)
        self.compiled = compiled

    def forward(self, x):
        around = self.dw_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        offset, mask = self.offset(around), self.mask(around).unflatten(-1, (GROUPS, -1)).softmax(-1)
        if self.compiled:
            geometry = (3, 3, self.stride, self.stride, 1, 1, 1, 1, GROUPS, WIDTH, self.offset_scale, 256)
            return DCNv3Function.apply(x, offset, mask.flatten(-2), *geometry, self.remove_center)
        n, h, w, _ = offset.shape
        x = F.pad(x, [0, 0, 1, 1, 1, 1])
        size = torch.tensor([x.shape[2], x.shape[1]])
        grid = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2))  # (x, y), x slowest
        grid = grid[[k for k in range(9) if k != 4 or not self.remove_center]]
        column, row = torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy")
        centre = torch.stack([column, row], -1)[:, :, None, None] * self.stride + 1.5
        places = centre + self.offset_scale * (grid + offset.view(n, h, w, GROUPS, -1, 2))
        places = (2 * places / size - 1).permute(0, 3, 1, 2, 4, 5).flatten(2, 3).flatten(0, 1)
        maps = x.permute(0, 3, 1, 2).unflatten(1, (GROUPS, WIDTH)).flatten(0, 1)
        read = F.grid_sample(maps, places, align_corners=False).view(n, GROUPS, WIDTH, h, w, -1)
        return (read * mask.permute(0, 3, 1, 2, 4)[:, :, None]).sum(-1).flatten(1, 2).permute(0, 2, 3, 1)


@pytest.mark.parametrize("remove_center", [0, 1])
@pytest.mark.parametrize("compiled", [False, True])
def test_internimages_module_is_recorded_once_and_samples_where_its_field_says(compiled, remove_center):
    torch.manual_seed(0)
    model = nn.ModuleDict({"dcn": DCNv3(compiled, remove_center=remove_center)})
    x = torch.randn(2, 9, 12, GROUPS * WIDTH)
    with torch.no_grad(), capture(model) as fields:
        out = model["dcn"](x)
    assert list(fields) == ["dcn"] and fields["dcn"].stride == (2, 2)
    torch.testing.assert_close(by_hand(fields["dcn"], x), out.double(), atol=2e-5, rtol=1e-5)


class DAT(nn.Module):
    """DAT's attention up to what it samples: references from (i + ½) / (size − 1), (y, x), and a table of relative
    positions, which grid_sample interpolates too."""

    def __init__(self, groups=2, stride=2):
        super().__init__()
        self.n_groups, self.no_off = groups, False
        self.proj_q, self.proj_k, self.proj_v = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.conv_offset = nn.Sequential(nn.Conv2d(4 // groups, 4, 3, stride, 1), nn.GELU(), nn.Conv2d(4, 2, 1))
        self.table = nn.Parameter(torch.randn(1, 1, 9, 9))

    def forward(self, x):
        n, _, h, w = x.shape
        offset = self.conv_offset(self.proj_q(x).view(n * self.n_groups, -1, h, w)).tanh().movedim(1, -1)
        rows, columns = offset.shape[1:3]
        reference = torch.stack(
            torch.meshgrid(
                (torch.arange(rows) + 0.5) / (rows - 1) * 2 - 1,
                (torch.arange(columns) + 0.5) / (columns - 1) * 2 - 1,
                indexing="ij",
            ),
            dim=-1,
        ).expand_as(offset)
        place = reference + offset
        self.read = F.grid_sample(x.view(n * self.n_groups, -1, h, w), place.flip(-1), align_corners=True)
        F.grid_sample(self.table, torch.zeros(1, 3, 3, 2), align_corners=False)
        five = (n, self.n_groups, rows, columns, 2)
        return self.proj_v(x), place.view(five), reference.view(five)


@pytest.mark.parametrize("stride", [1, 2])
def test_dat_has_one_point_a_cell_and_its_table_is_none(stride):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ModuleDict({"dat": DAT(stride=stride)}))
    layer, x = model[1]["dat"], torch.randn(2, 3, 22, 30)
    for _ in range(2):
        with torch.no_grad(), capture(model) as fields:
            maps = model[0](x)
            layer(maps)
        assert list(fields) == ["1.dat"]
        field = fields["1.dat"]
        assert field.offset.shape[:3] == (2, 2, 1) and field.source.convolutions == ("1.dat.conv_offset.2",)
        sizes = torch.tensor(field.input_size)
        grid = (field.sampling_points()[:, :, 0].flatten(0, 1) / (sizes - 1) * 2 - 1).flip(-1)
        read = F.grid_sample(maps.view(4, 2, *maps.shape[-2:]), grid, align_corners=True)
        torch.testing.assert_close(read, layer.read, atol=1e-5, rtol=1e-4)
        d_f = field.offset[:, :, 0]
        _, place, reference = layer(maps)
        torch.testing.assert_close(d_f, (place - reference).detach() / 2 * (sizes - 1), atol=1e-5, rtol=1e-4)
