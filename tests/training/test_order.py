"""The order of the data: a pure function of seed and step."""

from collections import Counter

import numpy as np
from hypothesis import given, strategies as st

from deformscope.training.order import Order, Slot, Steps, aspect_groups


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 99))
def test_every_photo_comes_once_an_epoch_and_none_is_missing(count, batch, seed):
    order = Order([0] * count, batch, seed)
    steps = -(-count // batch)
    seen = Counter(slot.index for step in range(steps) for slot in order.step(step))
    assert set(seen) == set(range(count))
    assert sum(seen.values()) == steps * batch


@given(st.lists(st.integers(0, 1), min_size=1, max_size=30), st.integers(1, 5))
def test_a_batch_holds_photos_of_one_group(groups, batch):
    order = Order(groups, batch, 5)
    for step in range(20):
        slots = order.step(step)
        assert len(slots) == batch
        assert len({groups[slot.index] for slot in slots}) == 1


def test_the_order_after_a_resume_is_that_of_an_unbroken_run():
    groups = aspect_groups([(3, 4), (4, 3), (5, 5)] * 9)
    whole = list(Steps(Order(groups, 4, 11), 0, 30))
    resumed = list(Steps(Order(groups, 4, 11), 13, 30))
    assert resumed == whole[13:]
    assert whole != list(Steps(Order(groups, 4, 12), 0, 30))


def test_processes_share_a_steps_photos():
    order = Order([0] * 23, 6, 1)
    parts = [list(Steps(order, 2, 9, rank, 2)) for rank in (0, 1)]
    for step, (first, second) in enumerate(zip(*parts, strict=True), start=2):
        assert sorted(first + second, key=lambda slot: slot.place) == order.step(step)


def test_epochs_differ_from_each_other():
    order = Order([0] * 50, 5, 0)
    epochs = [[slot.index for step in range(10 * e, 10 * e + 10) for slot in order.step(step)] for e in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_every_place_of_every_step_has_its_own_seed():
    seeds = {Slot(step, place, 0).seed(seed) for step in range(20) for place in range(8) for seed in range(3)}
    assert len(seeds) == 20 * 8 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_groups_tell_wide_from_tall():
    assert aspect_groups([(3, 4), (4, 3), (4, 4)]) == (1, 0, 0)
    assert np.unique(aspect_groups([(9, 2)] * 3)).tolist() == [0]
