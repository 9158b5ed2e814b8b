"""A small network with an encoder's and a decoder's deformable attention, and what makes a detector of it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deformscope

WIDTH, HEADS, LEVELS, POINTS, QUERIES, LAYERS = 16, 2, 2, 3, 7, 2
NAMES = ("cat", "dog", "cow")
SIDES = (48, 80)
"""Height and width of the network's input, px."""


class Attention(nn.Module):
    """Multi-scale deformable attention, as the original code computes it."""

    def __init__(self) -> None:
        super().__init__()
        self.sampling_offsets = nn.Linear(WIDTH, HEADS * LEVELS * POINTS * 2)
        self.attention_weights = nn.Linear(WIDTH, HEADS * LEVELS * POINTS)
        self.value_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, query: Tensor, reference_points: Tensor, maps: list[Tensor]) -> Tensor:
        n, q, _ = query.shape
        offsets = self.sampling_offsets(query).view(n, q, HEADS, LEVELS, POINTS, 2)
        weights = self.attention_weights(query).view(n, q, HEADS, -1).softmax(-1).view(n, q, HEADS, LEVELS, POINTS)
        out = torch.zeros(n, HEADS, WIDTH // HEADS, q)
        for level, one in enumerate(maps):
            h, w = one.shape[-2:]
            base = reference_points[:, :, None, None]
            if base.shape[-1] == 2:
                where = base + offsets[:, :, :, level] / torch.tensor([w, h])
            else:
                where = base[..., :2] + offsets[:, :, :, level] / POINTS * base[..., 2:] / 2
            grid = (2 * where - 1).transpose(1, 2).flatten(0, 1)  # [n·heads q points xy]
            value = self.value_proj(one.flatten(2).transpose(1, 2)).transpose(1, 2)
            value = value.reshape(n * HEADS, WIDTH // HEADS, h, w)
            seen = F.grid_sample(value, grid, align_corners=False).view(n, HEADS, -1, q, POINTS)
            out = out + (seen * weights[:, :, :, level].transpose(1, 2)[:, :, None]).sum(-1)
        return out.flatten(1, 2).transpose(1, 2)


class Queries(nn.Module):
    """Two maps, an encoder layer over all their cells (unless left out), and decoder layers that refine boxes."""

    def __init__(self, encoder: bool = True, spread: float = 1.5, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.down = nn.Conv2d(WIDTH, WIDTH, 2, stride=2)
        self.encoder = Attention() if encoder else None
        self.decoder = nn.ModuleList(Attention() for _ in range(LAYERS))
        self.queries = nn.Parameter(torch.randn(QUERIES, WIDTH))
        self.boxes, self.labels = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, len(NAMES))
        for module in self.modules():
            if isinstance(module, Attention):
                nn.init.normal_(module.sampling_offsets.weight, std=spread / WIDTH**0.5)
                nn.init.normal_(module.sampling_offsets.bias, std=spread)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = self.stem(images)
        maps = [fine, self.down(fine)]
        n = len(images)
        if self.encoder is not None:
            centres = [cells(one.shape[-2], one.shape[-1]) for one in maps]
            flat = torch.cat([one.flatten(2).transpose(1, 2) for one in maps], dim=1)
            flat = flat + self.encoder(flat, torch.cat(centres)[None].expand(n, -1, -1), maps)
            sizes = [one.shape[-2] * one.shape[-1] for one in maps]
            parts = flat.transpose(1, 2).split(sizes, dim=2)
            maps = [part.unflatten(2, one.shape[-2:]) for part, one in zip(parts, maps, strict=True)]
        state, boxes = self.queries[None].expand(n, -1, -1), None
        boxes = self.boxes(state).sigmoid() * 0.6 + 0.2
        for layer in self.decoder:
            state = state + layer(state, boxes, maps)
            boxes = (self.boxes(state) * 0.3 + boxes.logit()).sigmoid()
        return {"boxes": boxes, "logits": self.labels(state)}


def cells(h: int, w: int) -> Tensor:
    """Centres (x, y) in 0..1 of a map's cells, row-major."""
    y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2)


def prepare(photos):
    images = [torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 255 for photo in photos]
    return torch.cat([F.interpolate(image, SIDES, mode="bilinear") for image in images])


def decode(output, batch):
    size = torch.tensor([batch.shape[-1], batch.shape[-2]] * 2)
    found = []
    for boxes, logits in zip(output["boxes"], output["logits"], strict=True):
        scores, labels = logits.sigmoid().max(dim=-1)
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1) * size
        found.append({"boxes": corners, "scores": scores, "labels": labels, "query": torch.arange(len(boxes))})
    return found


def detector(encoder: bool = True, **settings):
    """The network as a detector; with ``encoder=False`` object queries are all its attention."""
    network = Queries(encoder, **settings)
    return deformscope.adapt(network, prepare=prepare, decode=decode, class_names=NAMES, name="queries", fit="stretch")


def without_encoder():
    return detector(encoder=False)


def net():
    """The bare network with its preparation, of which nothing is decoded."""
    return deformscope.adapt(Queries(), prepare=prepare, name="net", fit="stretch")
