"""Places of cells behind operators that move data: exact, or unknown with the operator's name."""

import pytest
import torch
import torch.nn.functional as F
from test_grid_trace import Function, Probe, conv
from torch import nn

import deformscope as ds
from deformscope import capture

IMAGE = torch.rand(2, 3, 48, 80)


def place(*layers, image=IMAGE):
    """(px a cell, px of the first cell's centre), or why they are not known."""
    with torch.inference_mode(), capture(net := nn.Sequential(*layers, Probe())) as fields:
        net(image)
    (field,) = fields.values()
    return field.unplaced if field.cells is None else (field.cells.reduction, field.cells.origin)


def windows(x, m=4):
    """[n c h w] to windows and back, through a layer on their tokens (Swin's, MaxViT's)."""
    n, c, h, w = x.shape
    tokens = x.view(n, c, h // m, m, w // m, m).permute(0, 2, 4, 3, 5, 1).reshape(-1, m * m, c)
    tokens = F.layer_norm(tokens, [c]) @ torch.eye(c)
    return tokens.view(n, h // m, w // m, m, m, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


def grids(x, m=4):
    """The same with every (h / m)-th cell in a window (MaxViT's grids)."""
    n, c, h, w = x.shape
    tokens = x.view(n, c, m, h // m, m, w // m).permute(0, 3, 5, 2, 4, 1).flatten(3, 4).flatten(0, 2) + 1
    return tokens.view(n, h // m, w // m, m, m, c).permute(0, 5, 3, 1, 4, 2).reshape(n, c, h, w)


def merged(x):
    """Swin's patch merging: four shifted slices as channels."""
    parts = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return torch.cat(parts, 1)


def patches(x, size=14):
    """A ViT's patches, by reshaping, a linear layer, a class token, and back to a map."""
    n, c, h, w = x.shape
    tokens = x.reshape(n, c, h // size, size, w // size, size).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    tokens = F.linear(tokens, torch.rand(8, tokens.shape[-1]))
    tokens = torch.cat([torch.zeros(n, 1, 8), tokens], 1) + torch.rand(1, 1 + h // size * (w // size), 8)
    _, tokens = F.layer_norm(tokens, [8]).split([1, tokens.shape[1] - 1], 1)
    return tokens.transpose(1, 2).unflatten(2, (h // size, w // size))


def channel_attention(x):
    """Weights of channels from a product over places keep the places of what they weigh."""
    flat = x.flatten(2)
    return ((flat @ flat.transpose(1, 2)).softmax(-1) @ flat).view_as(x)


def attention(x):
    """Queries keep their places, keys and values have none."""
    tokens = x.flatten(2).transpose(1, 2)
    seen = F.scaled_dot_product_attention(tokens, tokens.roll(3, 1), tokens.flip(1))
    return seen.transpose(1, 2).view_as(x)


HALF = conv(3, 3, 2, 1)
FOUR = (4.0, 4.0)
EXACT = {
    "pixel unshuffle": ([nn.PixelUnshuffle(2), conv(12, 1)], ((2.0, 2.0), (1.0, 1.0))),
    "pixel unshuffle alone": ([nn.PixelUnshuffle(4)], (FOUR, (2.0, 2.0))),
    "pixel shuffle": ([HALF, conv(4, 3, 2, 1), nn.PixelShuffle(2)], ((2.0, 2.0), (-0.5, -0.5))),
    "unshuffled and shuffled": ([nn.PixelUnshuffle(2), nn.PixelShuffle(2)], ((1.0, 1.0), (0.5, 0.5))),
    "windows": ([HALF, Function(windows)], ((2.0, 2.0), (0.5, 0.5))),
    "grids": ([HALF, Function(grids)], ((2.0, 2.0), (0.5, 0.5))),
    "merged patches": ([HALF, Function(merged)], (FOUR, (1.5, 1.5))),
    "patches of 14 and a class token": ([nn.ZeroPad2d((0, 4, 0, 8)), Function(patches)], ((14.0, 14.0), (7.0, 7.0))),
    "norm of channels that come last": (
        [HALF, Function(lambda x: F.layer_norm(x.permute(0, 2, 3, 1), [4]).permute(0, 3, 1, 2))],
        ((2.0, 2.0), (0.5, 0.5)),
    ),
    "tokens and back": (
        [HALF, Function(lambda x: (x.flatten(2).mT @ torch.rand(4, 6)).mT.reshape(2, 6, 24, 40))],
        ((2.0, 2.0), (0.5, 0.5)),
    ),
    "channel attention": ([HALF, Function(channel_attention)], ((2.0, 2.0), (0.5, 0.5))),
    "attention": ([HALF, Function(attention)], ((2.0, 2.0), (0.5, 0.5))),
    "a sum over what is not known": ([HALF, Function(lambda x: x + x.roll(5, -1))], ((2.0, 2.0), (0.5, 0.5))),
    "halves, concatenated again": (
        [HALF, Function(lambda x: torch.cat(x.chunk(2, -1), -1))],
        ((2.0, 2.0), (0.5, 0.5)),
    ),
    "windows by unfolding": (
        [HALF, Function(lambda x: x.unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2)))],
        ((8.0, 8.0), (3.5, 3.5)),
    ),
    "a convolution by columns": (
        [Function(lambda x: (torch.rand(5, 27) @ F.unfold(x, 3, padding=1, stride=2)).view(2, 5, 24, 40))],
        ((2.0, 2.0), (0.5, 0.5)),
    ),
    "stacked and summed": (
        [HALF, Function(lambda x: torch.stack([x, x[:, :, 1:-1].repeat_interleave(1, 2)[:, :, :0].sum() + x]).sum(0))],
        ((2.0, 2.0), (0.5, 0.5)),
    ),
    "a resize by a factor that does not divide": (
        [HALF, Function(lambda x: F.interpolate(x, scale_factor=0.3, mode="bilinear"))],
        ((2 / 0.3, 2 / 0.3), (0.5 + (1 / 0.3 - 1), 0.5 + (1 / 0.3 - 1))),
    ),
    "a pyramid's upper level added": (
        [HALF, Function(lambda x: F.interpolate(F.max_pool2d(x, 1, 2), scale_factor=2) + x)],
        ((2.0, 2.0), (0.5, 0.5)),
    ),
    "one row of tokens of many images": (
        [HALF, Function(lambda x: x[None].expand(3, -1, -1, -1, -1).flatten(0, 1)[::3].unsqueeze(1).squeeze(1))],
        ((2.0, 2.0), (0.5, 0.5)),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_cells_are_followed_exactly(name):
    layers, (reduction, origin) = EXACT[name]
    found = place(*layers)
    assert not isinstance(found, str), found
    assert found == (pytest.approx(reduction), pytest.approx(origin))


NO_MAP = "its input is no map of the image's rows and columns"
UNKNOWN = {
    "aten::roll": lambda x: x.roll(3, -1),
    "aten::sort": lambda x: x.sort(-1).values,
    "aten::index": lambda x: x[:, :, torch.arange(0, 24, 2)],
    "aten::rot90": lambda x: x.rot90(1, (2, 3)),
    "halves, swapped": lambda x: torch.cat([x[..., 20:], x[..., :20]], -1) * 2 + 1,
    "aten::adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (5, 7)),
    NO_MAP: lambda x: x.transpose(2, 3),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_followed_is_unknown_and_named(name):
    found = place(HALF, Function(UNKNOWN[name]))
    assert isinstance(found, str) and (name in found or found == NO_MAP)


def test_a_model_that_pads_inside_has_the_photo_that_went_in():
    class Padding(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(conv(3, 3, 2, 1), Probe())

        def forward(self, x):
            return self.body(F.pad(x, (3, 9, 5, 7)))

    with capture(net := Padding()) as fields:
        net(IMAGE)
    (field,) = fields.values()
    assert field.network_size == (48, 80) and field.placement().size == (48, 80)
    assert field.cells == ds.CellGrid((2.0, 2.0), (-4.5, -2.5))
    with pytest.raises(ds.DeformscopeError, match="outside the photo"):
        field.cell_at((50.0, 10.0))


def test_a_map_with_as_many_channels_as_the_image_is_no_image():
    found = place(Function(lambda x: x.sort(-1).values[..., ::2]), conv(3, 3, 1, 1))
    assert found == "aten::sort in 0"


class Named(nn.Module):
    """A model with its images in keywords, dictionaries and lists."""

    def __init__(self):
        super().__init__()
        self.stem, self.probe = conv(3, 3, 2, 1), Probe()

    def forward(self, batch=None, *, pixel_values=None, boxes=None):
        x = pixel_values if pixel_values is not None else batch["images"][0]
        return self.probe(self.stem(x))


@pytest.mark.parametrize("how", ["keyword", "nested", "object"])
def test_the_image_is_found_wherever_the_model_gets_it(how):
    class NestedTensor:
        tensors, mask = IMAGE, torch.zeros(2, 48, 80, dtype=torch.bool)

        def __getitem__(self, key):
            return [self.tensors]

    net = Named()
    with capture(net) as fields:
        if how == "keyword":
            net(pixel_values=IMAGE, boxes=torch.rand(2, 100, 4))
        else:
            net({"images": [IMAGE], "names": ["a", "b"]} if how == "nested" else NestedTensor())
    assert fields["probe"].cells == ds.CellGrid((2.0, 2.0)) and fields["probe"].network_size == (48, 80)
    assert fields["probe"].image.shape == (2, 48, 80, 3) and fields["probe"].image.dtype == torch.uint8


def test_images_of_two_sizes_leave_places_unknown():
    class Two(Named):
        def forward(self, left, right):
            return self.probe(self.stem(left))

    with capture(net := Two()) as fields:
        net(IMAGE, torch.rand(2, 3, 24, 40))
    assert fields["probe"].cells is None
    assert fields["probe"].unplaced == "Two was called with no image, or with images of several sizes"


def test_the_image_of_the_last_batch_alone_is_kept():
    net = Named()
    with capture(net) as fields:
        net(pixel_values=IMAGE)
        net(pixel_values=IMAGE.flip(0) * 9 - 4)
    assert fields["probe"].image is None
    assert fields["probe#2"].image.amin() == 0 and fields["probe#2"].image.amax() == 255


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_without_places_offsets_and_names_are_the_same(context):
    net = Named()
    with context():
        with capture(net) as known:
            net(pixel_values=IMAGE)
        with capture(net, places=False) as fields:
            net(pixel_values=IMAGE)
    assert list(fields) == list(known) and torch.equal(fields["probe"].offset, known["probe"].offset)
    assert fields["probe"].cells is None and "no places" in fields["probe"].unplaced and fields["probe"].image is None


def test_photos_may_be_told_by_their_files_and_how_they_became_the_input(tmp_path):
    from PIL import Image

    from deformscope.recording.capture import placed

    Image.new("RGB", (120, 90)).save(tmp_path / "photo.png")
    net = Named()
    with capture(net) as fields, placed(tmp_path / "photo.png", fit="crop"):
        net(pixel_values=IMAGE[:1])
    assert fields["probe"].placements == (ds.Placement.fitted((90, 120), (48, 80), "crop"),)
    message = 'say how the input was made: fit="stretch"'
    with pytest.raises(ds.DeformscopeError, match=message), capture(net), placed(tmp_path / "photo.png"):
        net(pixel_values=IMAGE[:1])
