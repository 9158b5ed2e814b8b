"""Circles against sizes, with weights, beside scipy; and the bootstrap that weighs."""

import numpy as np
import pytest
from scipy import stats

from deformscope.metrics import bootstrap
from deformscope.score import summary
from deformscope.score.records import Table

ONES = np.ones((1, 300))


def spearman(a, b, weights):
    return summary.correlation(summary.ranks(a, weights), summary.ranks(b, weights), weights)


@pytest.fixture
def pairs():
    random = np.random.default_rng(2)
    true = random.uniform(12, 260, 300)
    radius = np.round(true * random.lognormal(0, 0.5, 300) / 3)  # rounded: many ties
    return np.where(random.random(300) < 0.05, 0, radius), true


def test_circles_that_grow_with_objects_are_perfect():
    true = np.random.default_rng(0).uniform(10, 300, 300)
    half = np.arange(300) % 2 == 0
    assert spearman(true / 3.7, true, ONES)[0] == pytest.approx(1)
    assert summary.fit(true / 3.7, true, ONES)[0] == pytest.approx(3.7)
    assert summary.crossed(true / 3.7, true, half, ONES)[0] == pytest.approx(0, abs=1e-12)


def test_spearman_is_scipys(pairs):
    radius, true = pairs
    assert spearman(radius, true, ONES)[0] == pytest.approx(stats.spearmanr(radius, true).statistic)


def test_a_weight_counts_like_so_many_copies(pairs):
    radius, true = pairs
    weights = np.random.default_rng(8).integers(0, 4, (3, 300)).astype(float)
    half = np.arange(300) % 3 == 0
    rho, error = spearman(radius, true, weights), summary.crossed(radius, true, half, weights)
    for row, counts in enumerate(weights.astype(int)):
        r, s, side = (np.repeat(values, counts) for values in (radius, true, half))
        assert rho[row] == pytest.approx(stats.spearmanr(r, s).statistic)
        predicted = np.empty(len(r))
        for one in (side, ~side):
            used = ~one & (r > 0)
            predicted[one] = np.median(s[used] / r[used]) * r[one]
        assert error[row] == pytest.approx(np.median(np.abs(predicted - s) / s))


def test_circles_that_do_not_vary_have_no_correlation():
    true = np.random.default_rng(0).uniform(10, 300, 300)
    assert np.isnan(spearman(np.full(300, 5.0), true, ONES)[0])
    assert np.isnan(spearman(np.zeros(300), true, ONES)[0])
    assert np.isnan(summary.crossed(np.zeros(300), true, np.arange(300) % 2 == 0, ONES)[0])


def test_the_first_draw_is_the_sample_itself_and_intervals_cover_the_mean():
    random = np.random.default_rng(4)
    weights = bootstrap.draws(50, 400)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 50).all()
    covered = 0
    for _ in range(200):
        values = random.normal(3, 2, 50)
        drawn = bootstrap.mean(values, weights)
        assert drawn[0] == pytest.approx(values.mean())
        low, high = bootstrap.interval(drawn[1:])
        covered += low < 3 < high
    assert 0.88 < covered / 200 < 0.99


def test_photos_without_a_figure_are_left_out_of_its_mean():
    weights = bootstrap.draws(4, 10)
    assert bootstrap.mean(np.array([1.0, np.nan, 3.0, np.nan]), weights)[0] == 2
    assert np.isnan(bootstrap.mean(np.full(4, np.nan), weights)).all()
    assert np.isnan(bootstrap.interval(np.full(10, np.nan))).all()


def test_intervals_of_several_rows_are_those_of_each():
    drawn = np.random.default_rng(3).normal(size=(4, 60))
    drawn[1, :5], drawn[2, :20], drawn[3] = np.nan, np.nan, np.nan
    found = bootstrap.intervals(drawn)
    for row, (low, high) in zip(drawn, found, strict=True):
        np.testing.assert_equal(bootstrap.interval(row), (low, high))
    assert found[0] == pytest.approx(np.percentile(drawn[0], [2.5, 97.5]))
    assert found[1] == pytest.approx(np.percentile(drawn[1, 5:], [2.5, 97.5]))
    assert np.isnan(found[2:]).all()


def test_objects_without_a_value_are_left_out_of_a_correlation():
    random = np.random.default_rng(6)
    sizes = random.uniform(10, 200, (40, 2))
    owner = np.repeat(np.arange(20), 2)
    names = tuple(str(n) for n in range(20))
    table = Table(
        np.arange(20), names, *[np.zeros(20, dtype=bool)] * 3, np.zeros(20), owner, ("a",) * 40, ("M",) * 40, sizes, {}
    )
    weights = random.integers(0, 3, (5, 20)).astype(float)
    objects = summary.Objects.of(table, weights, np.zeros(20, dtype=bool))
    values = sizes[:, 0] + random.normal(0, 40, 40)
    values[::7] = np.nan
    seen = np.isfinite(values)
    for row, found in zip(objects.weights.astype(int), objects.spearman(values), strict=True):
        expected = stats.spearmanr(*(np.repeat(one[seen], row[seen]) for one in (values, objects.size))).statistic
        assert found == pytest.approx(expected)
