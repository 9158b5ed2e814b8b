"""Maps of cells are sampled alike, one by one and many at once."""

import numpy as np

from deformscope.fields.cell_maps import sample, sample_each, sample_grid


def test_a_grid_of_places_is_sampled_as_its_places_to_the_last_bit_also_beyond_the_border():
    maps = np.random.default_rng(0).standard_normal((2, 3, 8, 11))
    rows, columns = np.linspace(-1.7, 8.9, 97), np.linspace(-0.4, 13, 31)
    rows[:4], columns[:2] = (0, 3, 7, 8), (10, 11)
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
    slow = [[sample(one, places) for one in pair] for pair in maps]
    assert np.array_equal(sample_grid(maps, rows, columns), slow)


def test_a_map_of_one_cell_is_the_same_everywhere():
    assert (sample_grid(np.full((1, 1, 1), 0.3), np.array([-2.0, 0, 5]), np.array([0.0, 0.25])) == 0.3).all()


def test_places_in_several_maps_are_sampled_in_their_own():
    random = np.random.default_rng(1)
    maps, source = random.standard_normal((3, 8, 11)), random.integers(0, 3, (20, 5))
    places = random.random((20, 5, 2)) * (10, 13) - 1
    found = sample_each(maps, source, places)
    for number, one in enumerate(maps):
        own = source == number
        assert np.array_equal(found[own], sample(one, places[own]))
