"""Draw the pictures of docs/own_models.md: a known field behind three trunks, on photos resized in three ways.

python tools/draw_known_fields.py [FOLDER]

The deformable layers are untrained; their offsets lead to the photo's middle, where all arrows must meet.
"""

import sys
import tempfile
from pathlib import Path

import torch
import torchvision
import torchvision.models as zoo
import torchvision.transforms.v2.functional as T
from PIL import Image
from torch import nn

import deformscope as ds
from deformscope.photo import read

DOCS = Path(__file__).parents[1] / "docs"
SIDE = 224


class Pointing(nn.Module):
    """A trunk, and a deformable convolution on its map of 16 px a cell whose offsets lead to the px ``goal`` (y, x)."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features, self.goal = features.eval(), (0.0, 0.0)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.features(image)
        n, c, h, w = x.shape
        cells = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
        offset = (torch.tensor(self.goal)[:, None, None] - 8) / 16 - cells
        return torchvision.ops.deform_conv2d(
            x, offset.repeat(9, 1, 1)[None].expand(n, -1, -1, -1), torch.ones(1, c, 3, 3), padding=1
        )


class Patches(nn.Module):
    """torchvision's ViT without its head: the patches' tokens as a map."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = zoo.VisionTransformer(SIDE, 16, 2, 4, 64, 128)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.vit._process_input(image)
        tokens = self.vit.encoder(torch.cat([self.vit.class_token.expand(len(image), -1, -1), tokens], 1))
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (SIDE // 16, SIDE // 16))


class ChannelsFirst(nn.Module):
    """Swin's map, whose channels come last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 3, 1, 2)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "figures"
    torch.manual_seed(0)
    photo = Image.open(DOCS / "photos" / "meadow.jpg").convert("RGB")
    pixels = torch.from_numpy(read(photo)).permute(2, 0, 1)
    small = T.resize(pixels, SIDE - 1, max_size=SIDE)
    margin = (SIDE - small.shape[1]) // 2
    swin = nn.Sequential(*zoo.swin_t().features[:6], ChannelsFirst())
    ways = {
        "swin_t": (
            swin,
            T.resize(pixels, [SIDE, SIDE]),
            "stretch",
        ),
        "convnext_tiny": (zoo.convnext_tiny().features[:6], T.center_crop(T.resize(pixels, 256), SIDE), "crop:256"),
        "vit": (Patches(), T.pad(small, [0, margin, 0, SIDE - small.shape[1] - margin]), "pad-centre"),
    }
    for name, (features, image, fit) in ways.items():
        model = Pointing(features)
        model.goal = (SIDE / 2, SIDE / 2)
        with torch.no_grad(), ds.capture(model) as fields:
            model(image[None] / 255)
        figure = ds.draw.figure2(fields, photo, fit=fit, scale=1.0, cell_step=2)
        with tempfile.TemporaryDirectory() as scratch:
            drawn = Image.open(ds.draw.save(figure, Path(scratch) / "drawn.png", dpi=80)).convert("RGB")
        drawn.save(folder / f"known_{name}.webp", quality=80)
        print(folder / f"known_{name}.webp", drawn.size)


if __name__ == "__main__":
    main()
