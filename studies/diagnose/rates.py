"""How often `diagnose` errs about channel orders and clamps: false alarms and misses.

    python studies/diagnose/rates.py PHOTOS [DETECTOR ...] [--photos 12] [--draws 4000]

PHOTOS is a folder; DETECTOR a name or a file, by default the packaged one. Learned layers are read in their own order,
where any suspicion is a false alarm, and with their channels put into each of the three others, where none is a miss;
and their offsets are clamped so that the channel that is cut most lies at the limit in a given share of the cells.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import deformscope as ds
from deformscope import OffsetField
from deformscope.detectors.deform import DeformConv
from deformscope.health.channel_order import ORDERS, channels, suspected_order
from deformscope.health.checks import clamped
from deformscope.photo import find

POINTS = 9
Layers = dict[str, list[OffsetField]]
"""The fields of each layer on all photos."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("detectors", nargs="*", default=["packaged"])
    parser.add_argument("--photos", type=int, default=12)
    parser.add_argument("--draws", type=int, default=4000)
    settings = parser.parse_args()
    photos = find([settings.folder])[: settings.photos]
    for name, draw in RANDOM.items():
        random = torch.Generator().manual_seed(0)
        draws = [[OffsetField(draw(random))] for _ in range(settings.draws)]
        count_alarms(f"{name}, {settings.draws} draws", draws)
    fresh = []
    for seed in range(10):
        torch.manual_seed(seed)
        detector = ds.load("packaged")
        for module in detector.modules():
            if isinstance(module, DeformConv):
                module.conv_offset.reset_parameters()
        fresh += fields_of(detector, photos).values()
    count_alarms(f"offset convolutions as PyTorch initialises them, {len(photos)} photos", fresh)
    for name in settings.detectors:
        for count in (1, len(photos)):
            learned = fields_of(ds.load(name), photos[:count])
            count_alarms(f"{name}, {count} photos", list(learned.values()))
            missed = {o: sum(suspected(in_order(one, o)) != o for one in learned.values()) for o in ORDERS if o != "yx"}
            print(f"    misses of {len(learned)} layers in another order: {missed}")
            for kind, cut in CUTS.items():
                found = {s: sum(clamped("", cut_off(one, s, cut)) is None for one in learned.values()) for s in SHARES}
                print(
                    f"    misses of {len(learned)} layers behind a {kind}, by the share of the worst channel: {found}"
                )


def count_alarms(name: str, layers: Sequence[Sequence[OffsetField]]) -> None:
    """Print how many of these layers, whose order is right or which have none, and which have no clamp, are blamed."""
    orders = sum(suspected(fields) is not None for fields in layers)
    clamps = sum(clamped("", fields) is not None for fields in layers)
    total = len(layers)
    print(f"{name}: suspected of another order {orders} of {total} ({orders / total:.2%}), of a clamp {clamps}")


def fields_of(model: nn.Module, photos: Sequence[Path]) -> Layers:
    """What a detector's layers do on photos."""
    seen = ds.diagnose(model, list(photos)).fields
    return {layer: [one[layer] for one in seen] for layer in seen[0]}


def suspected(fields: Sequence[OffsetField]) -> str | None:
    """The order that is suspected of a layer."""
    found = suspected_order(fields)
    return None if found is None else found[0]


def in_order(fields: Sequence[OffsetField], order: str) -> list[OffsetField]:
    """Fields whose channels are right (dy, dx interleaved), as if they had come in another order."""
    stored = []
    for field in fields:
        came = field.offset.movedim(-1, 3).flatten(2, 3)
        channel = torch.empty_like(came)
        channel[:, :, channels(order, POINTS)] = came[:, :, channels("yx", POINTS)]
        stored.append(OffsetField(channel.unflatten(2, (POINTS, 2)).movedim(3, -1)))
    return stored


SHARES = (0.3, 0.4, 0.5, 0.7, 0.9)
CUTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "clamp": lambda offset, limit: offset.clamp(-limit, limit),
    "tanh": lambda offset, limit: limit * torch.tanh(4 * offset / limit),
}


def cut_off(fields: Sequence[OffsetField], share: float, cut: Callable[[Tensor, float], Tensor]) -> list[OffsetField]:
    """Fields cut off at a limit of each image's own, above which one channel has this share of its cells."""
    found = []
    for field in fields:
        long = field.offset.abs().movedim(-1, 3).flatten(1, 3).flatten(2)  # [n c cells]
        found.append(OffsetField(cut(field.offset, float(long.quantile(1 - share, dim=2).max()))))
    return found


def _normal(random: torch.Generator, cells: int) -> Tensor:
    return torch.randn(1, 1, POINTS, cells, cells, 2, generator=random)


def _waves(random: torch.Generator) -> Tensor:
    """A bias and four smooth patterns over the map, each in a random direction of the channels."""
    wave = torch.linspace(0, 3.14, 8)[:, None].cos().expand(8, 8)
    patterns = torch.stack([wave, wave.T, wave * wave.T, 2 * wave**2 - 1], dim=-1)
    weights = torch.randn(1, 1, POINTS, 1, 1, 2, 4, generator=random)
    return _normal(random, 1) + 0.5 * (weights * patterns[None, None, None, :, :, None]).sum(-1)


RANDOM: dict[str, Callable[[torch.Generator], Tensor]] = {
    "a random bias": lambda random: _normal(random, 1),
    "a random bias and noise of a third in every cell": lambda random: _normal(random, 1) + _normal(random, 8) / 3,
    "a random bias and smooth patterns": _waves,
}

if __name__ == "__main__":
    main()
