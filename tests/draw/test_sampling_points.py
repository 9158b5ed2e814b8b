"""Sampling points can be told apart, however close together they lie, and the cell's mark hides none of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.collections import EllipseCollection

from deformscope import OffsetField, draw
from deformscope.draw.sampling_points import Points, inset


def planted(reduction, photo, spread=0.5, **more):
    random = torch.Generator().manual_seed(3)
    h, w = (max(2, round(side / reduction)) for side in photo.shape[:2])
    return OffsetField.from_tensor(
        spread * torch.randn(1, 18, h, w, generator=random), reduction=reduction, name="layer", **more
    )


@pytest.fixture
def large() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)


@pytest.mark.parametrize("reduction", [4.0, 8.0, 16.0])
def test_points_close_together_are_enlarged_with_the_whole_photo_in_the_corner(reduction, large):
    field = planted(reduction, large)
    places = [(100, 120), (300, 500)]
    figure = draw.sampling(field, large, places)
    assert len(figure.axes) == 2
    for ax, place in zip(figure.axes, places, strict=True):
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        points = Points.of([field], place).reached
        inside = (points > (top, left)) & (points < (bottom, right))
        assert inside.all() and right - left < 640
        # The points fill a good part of what is shown.
        assert (np.ptp(points, axis=0) / (bottom - top, right - left)).max() > (0.3 if reduction > 4 else 0.1)
        (small,) = ax.child_axes
        (whole_left, whole_right), (whole_bottom, whole_top) = small.get_xlim(), small.get_ylim()
        assert (whole_left, whole_right, whole_bottom, whole_top) == (0, 640, 480, 0)
        frame = small.patches[0].get_bbox()
        np.testing.assert_allclose(frame.get_points(), [[left, top], [right, bottom]])
    # A field of the next panel has the photo in the same shape.
    assert figure.axes[0].get_position().width == pytest.approx(figure.axes[1].get_position().width)


def test_points_that_spread_over_the_photo_share_one_panel_and_without_zoom_all_do(large):
    figure = draw.sampling(planted(64.0, large), large, [(100, 120), (300, 500)])
    assert len(figure.axes) == 1 and not figure.axes[0].child_axes
    assert len(figure.axes[0].lines) == 2
    whole = draw.sampling(planted(8.0, large), large, [(100, 120), (300, 500)], zoom=False)
    assert len(whole.axes) == 1 and whole.axes[0].get_xlim() == (0, 640)


def test_the_overview_enlarges_points_that_are_close_together(large):
    ax = draw.overview(planted(8.0, large), large).axes[3]
    assert len(ax.child_axes) == 1 and np.ptp(ax.get_xlim()) < 200
    assert not draw.overview(planted(64.0, large), large).axes[3].child_axes


@pytest.mark.parametrize("depth", [1, 2])
def test_the_cells_mark_is_below_the_points_and_extends_beyond_one_on_it(depth, large):
    fields = [planted(64.0, large, 0.0), replace(planted(64.0, large, 0.0), name="upper", below="layer")]
    figure = draw.sampling(fields, large, [(240, 320)], depth=depth)
    ax = figure.axes[0]
    dots = [artist for artist in ax.collections if isinstance(artist, EllipseCollection)][-1]
    assert ax.lines[0].get_zorder() < dots.get_zorder()
    diameter = ax.transData.transform([(dots.get_widths()[0], 0)])[0, 0] - ax.transData.transform([(0, 0)])[0, 0]
    assert ax.lines[0].get_markersize() / 72 * figure.dpi > 1.5 * diameter


def test_the_small_photo_is_where_it_hides_fewest_points(large):
    field = planted(8.0, large)
    points = Points.of([field], (100, 120))
    window = points.window(large.shape[:2])
    crowd = np.array([[window.top + 1, window.left + 1], [window.top + 2, window.left + 2]])
    ax = draw.figure3(field, large).axes[0]
    from deformscope.backdrop import Backdrop

    inset(ax, Backdrop.of(large), window, Points(points.cell, points.regular, crowd, None), "red")
    small = ax.child_axes[0]
    small.apply_aspect(small.get_axes_locator()(small, None))
    assert small.get_position().x0 > ax.get_position().x0 + 0.3 * ax.get_position().width


def test_points_that_are_no_numbers_do_not_widen_the_view(large):
    field = planted(8.0, large)
    row, column = field.cell_at((100, 120))
    field.offset[0, 0, 4, row, column] = float("nan")
    assert np.ptp(draw.sampling(field, large, [(100, 120)]).axes[0].get_xlim()) < 200
