"""Figures show what was computed: artists hold the field's numbers, texts can be read, files are whole."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from matplotlib.text import Text

from deformscope import DeformscopeError, OffsetField, Placement, divergence, draw, extent, radius, split
from deformscope.draw import primitives, style
from deformscope.draw.panels import FieldView
from deformscope.draw.sheet import sheet

PHOTO = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)


def field_on(photo=PHOTO, kernel=(3, 2), g=2, name="backbone.layer3", reduction=8.0, modulated=False, spread=1.0):
    """A random field whose cells cover the photo, seen through a resize by 0.5."""
    scale = 0.5
    h, w = (round(size * scale / reduction) for size in photo.shape[:2])
    random = torch.Generator().manual_seed(1)
    points = kernel[0] * kernel[1]
    return OffsetField.from_tensor(
        spread * torch.randn(1, 2 * g * points, h, w, generator=random),
        kernel_size=kernel,
        offset_groups=g,
        reduction=reduction,
        modulation=torch.rand(1, g * points, h, w, generator=random) if modulated else None,
        placements=[Placement(photo.shape[:2], (scale, scale))],
        name=name,
    )


def quivers(ax):
    return [artist for artist in ax.get_children() if isinstance(artist, Quiver)]


def test_the_kernel_points_fields_of_figure_1_average_to_the_arrows_of_figure_2():
    field = field_on(kernel=(3, 3), g=1)
    first = draw.figure1(field, PHOTO, scale=1.0)
    second = draw.figure2(field, PHOTO, scale=1.0)
    small = [quivers(ax)[0] for ax in first.axes]
    assert len(small) == 9
    mean = np.mean([[q.U, q.V] for q in small], axis=0)
    arrows = quivers(second.axes[0])[0]
    np.testing.assert_allclose(mean, [arrows.U, arrows.V], atol=1e-5)


def test_figure_1_has_a_panel_a_kernel_point_in_the_kernels_layout_with_its_own_offsets():
    field = field_on()
    figure = draw.figure1(field, PHOTO, scale=1.0, cell_step=1, group=1)
    tops = [round(ax.get_position().y0, 6) for ax in figure.axes]
    lefts = [round(ax.get_position().x0, 6) for ax in figure.axes]
    assert len(figure.axes) == 6
    assert [sorted(set(tops), reverse=True).index(t) for t in tops] == [0, 0, 1, 1, 2, 2]
    assert [sorted(set(lefts)).index(x) for x in lefts] == [0, 1, 0, 1, 0, 1]
    for k, ax in enumerate(figure.axes):
        small, trend = quivers(ax)[:2]
        per_cell = field.pixels_per_cell()
        np.testing.assert_allclose(small.U, field.offset[0, 1, k, ..., 1].numpy().ravel() * per_cell[1], rtol=1e-4)
        np.testing.assert_allclose(small.V, field.offset[0, 1, k, ..., 0].numpy().ravel() * per_cell[0], rtol=1e-4)
        starts = field.to_pixels(field.regular_points()[k]).numpy().reshape(-1, 2)
        np.testing.assert_allclose(np.column_stack([small.Y, small.X]), starts, rtol=1e-4, atol=1e-3)
        direction = np.array([small.U.mean(), small.V.mean()])
        thick = np.array([trend.U[0], trend.V[0]])
        assert direction @ thick / np.linalg.norm(direction) / np.linalg.norm(thick) == pytest.approx(1)


def test_figure_2s_mask_is_on_its_cells_and_red_where_the_divergence_is_negative():
    field = field_on(g=1)
    div = divergence(split(field.offset)[0], field.stride)[0, 0, 0].numpy()
    view = FieldView.of(field, PHOTO.shape[:2])
    np.testing.assert_allclose(view.div, div, atol=1e-6)
    ax = Figure(figsize=(4, 3)).add_axes((0, 0, 1, 1))
    primitives.photo(ax, PHOTO)
    image = primitives.divergence_mask(ax, div, view.corners)
    veil = np.asarray(image.get_array())[1:-1, 1:-1]
    assert ((veil[..., 3] > 0) == (div < 0)).all()
    inward = div[div < 0]
    alpha = veil[..., 3][div < 0]
    assert (np.diff(alpha[np.argsort(-inward)]) >= 0).all()
    assert (veil[..., 0] > veil[..., 2]).all()
    left, right, bottom, top = image.get_extent()
    h, w = np.asarray(image.get_array()).shape[:2]
    centres = field.to_pixels(field.centres()).numpy()
    for y, x in itertools.product(range(div.shape[0]), range(div.shape[1])):
        drawn = (top + (bottom - top) * (y + 1.5) / h, left + (right - left) * (x + 1.5) / w)
        assert drawn == pytest.approx(centres[y, x], abs=1e-3)


def test_figure_3s_circles_have_the_radius_of_the_formula_around_their_cells():
    field = field_on(kernel=(3, 3), g=1)
    figure = draw.figure3(field, PHOTO, scale=2.0, cell_step=1)
    (circles,) = [a for a in figure.axes[0].collections if isinstance(a, EllipseCollection)]
    spread = radius(split(field.offset)[1])[0, 0].numpy().ravel() * field.pixels_per_cell()[0]
    high, wide = (side[0, 0].numpy().ravel() * field.pixels_per_cell()[0] for side in extent(split(field.offset)[1]))
    together = (high < 0) | (wide < 0)
    px = np.where(together, np.sqrt(np.abs(high * wide)), spread)
    assert 0 < together.sum() < together.size
    centres = field.to_pixels(field.centres()).numpy().reshape(-1, 2)[:, ::-1]
    by_place = {tuple(np.round(o, 2)): w for o, w in zip(circles.get_offsets(), circles.get_widths(), strict=True)}
    assert [by_place[tuple(np.round(c, 2))] for c in centres] == pytest.approx(4 * px, abs=1e-3)
    green = np.isclose(circles.get_edgecolors(), to_rgba(style.TOGETHER)).all(axis=1)
    known = {tuple(np.round(place, 2)) for place in centres[together]}
    assert {tuple(np.round(place, 2)) for place in np.asarray(circles.get_offsets())[green]} == known


def test_figure_3_of_kernels_that_are_all_drawn_together_is_not_blank():
    y, x = torch.meshgrid(torch.arange(3) - 1.0, torch.arange(3) - 1.0, indexing="ij")
    together = -0.25 * torch.stack([y, x], dim=-1).view(1, 18, 1, 1).expand(1, 18, 15, 20)
    field = OffsetField.from_tensor(together.clone(), reduction=8.0, name="shrunken")
    for kind in ("figure3", "overview"):
        figure = getattr(draw, kind)(field, PHOTO)
        words = " ".join(text.get_text() for text in figure.findobj(Text))
        assert "no kernel is spread; green: drawn together, |r| up to 4 px" in words
    (circles,) = [a for a in draw.figure3(field, PHOTO).axes[0].collections if isinstance(a, EllipseCollection)]
    assert (circles.get_widths() > 1).all()


def test_the_circles_of_offsets_that_are_no_numbers_are_left_out():
    field = field_on(kernel=(3, 3), g=1)
    field.offset[..., 2, 3, :] = float("nan")
    (circles,) = [a for a in draw.figure3(field, PHOTO).axes[0].collections if isinstance(a, EllipseCollection)]
    assert np.isfinite(circles.get_widths()).all()
    assert len(circles.get_widths()) == field.offset.shape[3] * field.offset.shape[4] - 1
    for kind in ("figure1", "figure2", "sampling", "overview"):
        FigureCanvasAgg(getattr(draw, kind)(field, PHOTO)).draw()


@pytest.mark.parametrize(("depth", "count"), [(1, 9), (2, 81), (3, 729)])
def test_sampling_points_are_drawn_all_and_coloured_by_modulation_where_there_is_one(depth, count):
    fields = [field_on(kernel=(3, 3), g=1, name=f"l{i}", modulated=i == 2, spread=0.1) for i in range(3)]
    fields = [replace(field, below=f"l{i - 1}" if i else "") for i, field in enumerate(fields)]
    figure = draw.sampling(fields, PHOTO, [(60, 80)], depth=depth)
    dots = [a for a in figure.axes[0].collections if isinstance(a, EllipseCollection)][-1]
    assert len(dots.get_offsets()) == count
    assert dots.get_array() is not None


def test_growth_shows_all_moments_in_the_scales_of_the_last():
    small, large = field_on(spread=0.1, g=1), field_on(spread=1.0, g=1)
    figure = draw.growth({"early": small, "late": large}, PHOTO, cell_step=1)
    early, late, circles, last_circles = figure.axes
    lengths = [np.hypot(*(quivers(ax)[0].U, quivers(ax)[0].V)) for ax in (early, late)]
    np.testing.assert_allclose(lengths[0] * 10, lengths[1], rtol=1e-3)
    widths = [
        next(a for a in ax.get_children() if isinstance(a, EllipseCollection)).get_widths()
        for ax in (circles, last_circles)
    ]
    np.testing.assert_allclose(widths[0] * 10, widths[1], rtol=1e-3)
    begun = OffsetField.from_tensor(torch.zeros(1, 12, 15, 20), kernel_size=(3, 2), reduction=8.0)
    draw.growth({"before training": begun, "late": large}, PHOTO)
    with pytest.raises(DeformscopeError, match="fields: none given"):
        draw.growth({}, PHOTO)


def test_dense_fields_are_thinned_and_every_overrides_it():
    field = field_on(reduction=1.0, kernel=(3, 3), g=1)
    arrows = quivers(draw.figure2(field, PHOTO).axes[0])[0]
    assert len(np.unique(arrows.X)) <= 40
    every = quivers(draw.figure2(field, PHOTO, cell_step=1).axes[0])[0]
    assert field.offset.shape[3] * field.offset.shape[4] == every.N


def texts(figure):
    """All texts that are shown, and the boxes they fill, in display px."""
    FigureCanvasAgg(figure).draw()
    shown = figure.findobj(match=lambda a: isinstance(a, Text) and a.get_visible() and a.get_text())
    return shown, [text.get_window_extent() for text in shown]


@pytest.mark.parametrize("shape", [(160, 120, 3), (100, 400, 3), (400, 100, 3)])
@pytest.mark.parametrize("kind", ["figure1", "figure2", "figure3", "sampling", "overview", "growth"])
def test_no_text_leaves_the_figure_or_covers_another(kind, shape):
    photo = np.full(shape, 128, np.uint8)
    fields = [field_on(photo, kernel=(3, 3), g=2, name=f"backbone.layer{i}.5.conv2", reduction=4.0) for i in (2, 3, 4)]
    moments = {f"after {1000 * i} steps": field for i, field in enumerate(fields * 2)}
    given = {"figure1": fields[0], "growth": moments}.get(kind, fields)
    figure = getattr(draw, kind)(given, photo)
    shown, frames = texts(figure)
    width, height = figure.bbox.width, figure.bbox.height
    assert len(frames) >= 2
    for text, frame in zip(shown, frames, strict=True):
        inside = frame.x0 >= -1 and frame.y0 >= -1 and frame.x1 <= width + 1 and frame.y1 <= height + 1
        assert inside, (text.get_text(), frame.bounds, (width, height))
    for (a, one), (b, other) in itertools.combinations(zip(shown, frames, strict=True), 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        down = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert across < 2 or down < 2, (a.get_text(), b.get_text())


def test_a_notebook_shows_the_figure_as_a_picture():
    figure = draw.figure2(field_on(), PHOTO)
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_names_with_dollar_signs_are_text_and_no_formula(tmp_path):
    field = field_on(name="a$b_c$.conv")
    detection = {"boxes": torch.tensor([[5.0, 5, 60, 60]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
    figure = draw.figure2(field, PHOTO, detection=detection, class_names=["ca$t$"])
    draw.save(figure, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "a$b_c$.conv" in text
    assert "ca$t$" in text


def test_a_dead_field_is_drawn_too(tmp_path):
    dead = OffsetField.from_tensor(torch.zeros(1, 18, 15, 20), reduction=8.0, name="dead")
    for kind in ("figure1", "figure2", "figure3", "sampling", "overview"):
        draw.save(getattr(draw, kind)(dead, PHOTO), tmp_path / f"{kind}.png", dpi=40)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw.figure2([], PHOTO), "fields: none given"),
        (lambda: draw.figure1(field_on(), PHOTO, group=2), "group=2: expected below 2"),
        (lambda: draw.figure1(field_on(), PHOTO, cell_step=0), "cell_step=0: expected a whole number from 1"),
        (lambda: draw.sampling(field_on(), PHOTO, depth=4), "depth=4: expected 1 to 3"),
        (
            lambda: draw.sampling(field_on(), PHOTO, depth=2),
            r"depth=2: 1 of the layers given follow each other \(.*\); the layer below it is not known",
        ),
        (lambda: draw.sampling(field_on(), PHOTO, [(500, 3)]), r"\(500, 3\): outside the photo, which is 120 high"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(DeformscopeError, match=message):
        call()


def test_factors_are_readable_numbers():
    assert [primitives.nice(v) for v in (0.13, 1.0, 3.4, 8.0, 40.0, 0.0, float("nan"))] == [0.1, 1, 5, 10, 50, 1, 1]


def test_a_sheet_keeps_the_photos_proportions():
    for size in [(100, 160), (160, 100), (64, 400)]:
        made = sheet(2, 3, size)
        for ax in made.flat():
            box = ax.get_position()
            wide, tall = box.width * made.figure.get_figwidth(), box.height * made.figure.get_figheight()
            assert tall / wide == pytest.approx(size[0] / size[1], rel=1e-6)
