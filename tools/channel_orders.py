"""How often `diagnose` suspects a channel order: false alarms on random and on learned offsets, and misses.

    python tools/channel_orders.py PHOTOS [DETECTOR ...] [--photos 12] [--draws 4000]

PHOTOS is a folder; DETECTOR a name or a file, by default the packaged one. Learned layers are read in their own order,
where any suspicion is a false alarm, and with their channels put into each of the three others, where none is a miss.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import deformscope as ds
from deformscope import OffsetField
from deformscope.detectors.deform import DeformConv
from deformscope.fields.fields import Fields
from deformscope.health.channel_order import ORDERS, channels, suspected_order
from deformscope.photo import find

POINTS = 9


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
        alarms = sum(suspected([draw(random)]) is not None for _ in range(settings.draws))
        print(f"{name}: {alarms} of {settings.draws} suspected, {alarms / settings.draws:.2%}")
    alarms = layers = 0
    for seed in range(10):
        torch.manual_seed(seed)
        detector = ds.load("packaged")
        for module in detector.modules():
            if isinstance(module, DeformConv):
                module.conv_offset.reset_parameters()
        found = [suspected(offsets) for offsets in by_layer(ds.diagnose(detector, photos).fields).values()]
        layers, alarms = layers + len(found), alarms + sum(one is not None for one in found)
    print(f"fresh offset convolutions (PyTorch's initialisation), {len(photos)} photos: {alarms} of {layers} suspected")
    for name in settings.detectors:
        for count in (1, len(photos)):
            offsets = by_layer(ds.diagnose(ds.load(name), photos[:count]).fields)
            told = {order: [suspected([stored(o, order) for o in one]) for one in offsets.values()] for order in ORDERS}
            alarms = sum(one is not None for one in told.pop("yx"))
            missed = {order: sum(one != order for one in found) for order, found in told.items()}
            print(
                f"{name}, {count} photos: {alarms} of {len(offsets)} suspected as they are; missed in others: {missed}"
            )


def suspected(offsets: Sequence[Tensor]) -> str | None:
    """The order that is suspected of offsets ``[1 g k h w 2]`` on several photos."""
    found = suspected_order([OffsetField(offset) for offset in offsets])
    return None if found is None else found[0]


def by_layer(fields: Sequence[Fields]) -> dict[str, list[Tensor]]:
    """The offsets of each layer on all photos."""
    return {layer: [one[layer].offset for one in fields] for layer in fields[0]}


def stored(offset: Tensor, order: str) -> Tensor:
    """Offsets whose channels are right (dy, dx interleaved), as if they had come in another order."""
    came = offset.movedim(-1, 3).flatten(2, 3)
    channel = torch.empty_like(came)
    channel[:, :, channels(order, POINTS)] = came[:, :, channels("yx", POINTS)]
    return channel.unflatten(2, (POINTS, 2)).movedim(3, -1)


def _normal(random: torch.Generator, cells: int) -> Tensor:
    return torch.randn(1, 1, POINTS, cells, cells, 2, generator=random)


def _waves(random: torch.Generator) -> Tensor:
    """A bias and four smooth patterns over the map, each in a random direction of the channels."""
    wave = torch.linspace(0, 3.14, 8)[:, None].cos().expand(8, 8)
    patterns = torch.stack([wave, wave.T, wave * wave.T, 2 * wave**2 - 1], dim=-1)
    weights = torch.randn(1, 1, POINTS, 1, 1, 2, 4, generator=random)
    return _normal(random, 1) + 0.5 * (weights * patterns[None, None, None, :, :, None]).sum(-1)


RANDOM = {
    "a random bias": lambda random: _normal(random, 1),
    "a random bias and noise of a third in every cell": lambda random: _normal(random, 1) + _normal(random, 8) / 3,
    "a random bias and smooth patterns": _waves,
}

if __name__ == "__main__":
    main()
