"""A field that points to the photo's middle, behind real trunks, on photos that became the input in every usual way."""

import numpy as np
import pytest
import torch
import torchvision
import torchvision.models as zoo
import torchvision.transforms.v2.functional as T
from torch import nn
from trunks import Stages, Tokens

import deformscope as ds


class Pointing(nn.Module):
    """A trunk with patches of r px, and an untrained deformable convolution whose offsets lead to one px (y, x)."""

    def __init__(self, trunk, r):
        super().__init__()
        self.trunk, self.r, self.goal = trunk.eval(), r, (0.0, 0.0)

    def forward(self, image):
        *_, x = self.trunk.maps(image)
        n, c, h, w = x.shape
        cells = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
        moves = (torch.tensor(self.goal)[:, None, None] - self.r / 2) / self.r - cells
        weight = torch.ones(1, c, 3, 3) / c
        return torchvision.ops.deform_conv2d(x, moves.repeat(9, 1, 1)[None].expand(n, -1, -1, -1), weight, padding=1)


@pytest.fixture(scope="module", params=["swin_t", "convnext_tiny", "vit"], ids=lambda name: name.replace("_tiny", ""))
def model(request):
    torch.manual_seed(0)
    trunk = {
        "swin_t": lambda: Stages(nn.Sequential(*zoo.swin_t().features[:6]), last=True),
        "convnext_tiny": lambda: Stages(zoo.convnext_tiny().features[:6]),
        "vit": Tokens,
    }[request.param]()
    return Pointing(trunk, 16)


def stretched(photo):
    return T.resize(photo, [96, 96]), (48.0, 48.0)


def cropped(photo):
    return T.center_crop(T.resize(photo, 96), 96), (48.0, 48.0)


def cropped_from_128(photo):
    return T.center_crop(T.resize(photo, 128), 96), (48.0, 48.0)


def resized_to_fit(photo):
    h, w = photo.shape[-2:]
    return T.resize(photo, [round(h * 96 / max(h, w)), round(w * 96 / max(h, w))])


def padded(photo):
    small = resized_to_fit(photo)
    h, w = small.shape[-2:]
    return T.pad(small, [0, 0, 96 - w, 96 - h]), (h / 2, w / 2)


def letterboxed(photo):
    small = resized_to_fit(photo)
    h, w = small.shape[-2:]
    top, left = (96 - h) // 2, (96 - w) // 2
    return T.pad(small, [left, top, 96 - w - left, 96 - h - top]), (top + h / 2, left + w / 2)


WAYS = {
    None: lambda photo: (T.resize(photo, [96, 96]), (48.0, 48.0)),
    "stretch": stretched,
    "crop": cropped,
    "crop:128": cropped_from_128,
    "pad": padded,
    "pad-centre": letterboxed,
}


@pytest.mark.parametrize("fit", WAYS)
@pytest.mark.parametrize("size", [(180, 240), (301, 200)])
def test_all_arrows_meet_in_the_middle_of_the_photo(model, fit, size):
    size = (260, 260) if fit is None else size  # of the input's aspect ratio: nothing need be said
    photo = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    image, model.goal = WAYS[fit](torch.from_numpy(photo).permute(2, 0, 1))
    with torch.no_grad(), ds.placed(photo, fit=fit), ds.capture(model) as fields:
        model(image[None].float())
    (field,) = fields.values()
    ends = field.to_pixels(field.sampling_points().mean(dim=2)[0, 0])
    middle = torch.tensor(size) / 2
    # Sides are rounded to whole px when a photo is resized, and margins when it is cut.
    assert (ends - middle).abs().max() <= 0.51 * max(size) / 96
