"""The order of an offset convolution's channels: a wrong one is suspected, a right or a random one is not."""

from dataclasses import replace

import pytest
import torch

import deformscope
from deformscope import OffsetField
from deformscope.health.channel_order import channels, suspected_order
from deformscope.health.checks import channel_order


def test_the_published_channel_layout_of_a_real_network_is_not_suspected(oracles):
    oracle = oracles["faster"]
    detector = oracle.load()
    with deformscope.capture(detector) as fields:
        detector(oracle.photos)
    assert len(fields) == 13
    for name, field in fields.items():
        assert channel_order(name, [field]) is None


@pytest.fixture(scope="module")
def learned(cat):
    """The fields on three photos of the packaged detector's six layers, whose order is right."""
    photos = [cat.parent / name for name in ("chelsea.png", "astronaut.png", "coffee.png")]
    return deformscope.diagnose(deformscope.load("packaged"), photos).fields


@pytest.mark.parametrize("order", ["yx", "xy", "planar yx", "planar xy"])
def test_a_learned_layer_is_suspected_in_every_order_but_its_own(learned, order):
    def stored(field):
        came = field.offset.movedim(-1, 3).flatten(2, 3)  # dy, dx interleaved: [n g 2·k h w]
        channel = torch.empty_like(came)
        channel[:, :, channels(order, 9)] = came[:, :, channels("yx", 9)]
        return replace(field, offset=channel.unflatten(2, (9, 2)).movedim(3, -1))

    assert len(learned[0]) == 6
    found = [suspected_order([stored(fields[layer]) for fields in learned]) for layer in learned[0]]
    orders = [None if one is None else one[0] for one in found]
    if order == "yx":
        assert orders == [None] * 6
    else:
        assert orders.count(order) >= 5 and set(orders) <= {order, None}


@pytest.mark.parametrize("cells", [1, 30])
def test_random_offsets_are_hardly_ever_suspected(cells):
    """As a bias drawn at random makes them, alike in all cells or nearly: three in a hundred once were."""
    random = torch.Generator().manual_seed(3)
    biases = torch.randn(400, 18, 1, 1, generator=random) + 0.1 * torch.randn(400, 18, 1, cells, generator=random)
    alarms = sum(suspected_order([OffsetField.from_tensor(offset)]) is not None for offset in biases)
    assert alarms <= 3
