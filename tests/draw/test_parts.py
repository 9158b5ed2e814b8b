"""What is drawn faster than matplotlib draws it looks the same: arrows, photos, PNG files, lines of text."""

import base64
import io
import itertools
import re

import matplotlib
import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from PIL import Image

from deformscope import DeformscopeError, draw
from deformscope.draw.figures import row_of_panels
from deformscope.draw.save import png
from deformscope.draw.sheet import Panel
from deformscope.draw.text import escaped, width, wrapped


def canvas_of(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def axes(size=(4.0, 3.0), cls=None):
    ax = Figure(figsize=size, dpi=100).add_axes((0, 0, 1, 1), axes_class=cls or Panel)
    ax.set(xlim=(0, 160), ylim=(120, 0))
    return ax


def test_arrows_have_the_outlines_of_matplotlibs_quiver():
    random = np.random.default_rng(0)
    starts = random.uniform(0, 120, (200, 2))
    vectors = random.normal(0, 1, (200, 2)) * np.geomspace(0.01, 60, 200)[:, None]
    ax = axes()
    artist = draw.arrows(ax, starts, vectors, width=1.1, halo=False)
    plain = Quiver(
        ax,
        *(starts[:, 1], starts[:, 0], vectors[:, 1], vectors[:, 0]),
        angles="xy",
        scale_units="xy",
        scale=1,
        units="inches",
        width=1.1 / 72,
        headwidth=3.6,
        headlength=4.2,
        headaxislength=3.8,
        minlength=0.6,
    )
    ax.add_collection(plain)
    canvas_of(ax.figure)
    ours = artist.outlines()
    for index, path in enumerate(plain.get_paths()):
        theirs = plain.get_transform().transform(path.vertices) + ax.transData.transform(starts[index, ::-1])
        np.testing.assert_allclose(ours[index][:7], theirs[:7], atol=1e-6)


def test_many_arrows_of_one_colour_are_drawn_as_one_shape_and_gaps_are_left_out():
    starts = np.stack(np.meshgrid(np.arange(0, 120, 3.0), np.arange(0, 160, 3.0), indexing="ij"), axis=-1).reshape(
        -1, 2
    )
    vectors = np.full_like(starts, 2.0)
    vectors[::7] = np.nan
    artist = draw.arrows(axes(), starts, vectors)
    assert len(artist.outlines()) == np.isfinite(vectors[:, 0]).sum()
    assert (canvas_of(artist.figure)[..., 0] > canvas_of(artist.figure)[..., 1] + 60).mean() > 0.02


# matplotlib 3.10.0 itself draws a magnified photo beside its place.
AT_FAULT = pytest.mark.xfail(matplotlib.__version__ == "3.10.0", reason="a fault of this matplotlib", strict=False)


@pytest.mark.parametrize("how", ["ours", pytest.param("matplotlib's", marks=AT_FAULT)])
@pytest.mark.parametrize("ylim", [(120, 0), (60, 20), (150, -30)])
def test_each_pixel_of_a_photo_is_shown_where_it_is(ylim, how, photo):
    """Also magnified, and with room beside it."""
    ax = axes((6.4, 4.8))
    if how == "ours":
        draw.photo(ax, photo)
    else:
        ax.imshow(photo, extent=(0, 160, 120, 0), interpolation="nearest")
        ax.set_axis_off()
    ax.set(xlim=(0, 160), ylim=ylim, aspect="auto")
    shown = canvas_of(ax.figure)
    y, x = (places.ravel() for places in np.mgrid[:120, :160])
    across, up = ax.transData.transform(np.column_stack([x + 0.5, y + 0.5])).T
    row, column = np.floor(shown.shape[0] - up).astype(int), np.floor(across).astype(int)
    on = (row >= 0) & (row < shown.shape[0])
    assert on.sum() >= 40 * 160
    np.testing.assert_array_equal(shown[row[on], column[on]], photo[y[on], x[on]])
    if ylim == (150, -30):
        assert (shown[:70] == 255).all() and (shown[-70:] == 255).all(), "nothing beside the photo"


def held_in_svg(ax):
    """The pictures in an axes' SVG, each with how it is turned and where it lies."""
    text = io.StringIO()
    ax.figure.savefig(text, format="svg", dpi=72)
    for tag in re.findall(r"<image[^>]*>", text.getvalue()):
        data = base64.b64decode(re.search(r"base64,([^\"]*)", tag)[1])
        where = {key: re.search(rf' {key}="([^"]*)"', tag)[1] for key in ("transform", "x", "y", "width", "height")}
        yield np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), where


def test_a_photo_lies_in_an_svg_as_matplotlib_puts_it(photo):
    ours, theirs = axes((160 / 24, 120 / 24)), axes((160 / 24, 120 / 24))
    draw.photo(ours, photo)
    theirs.imshow(photo, extent=(0, 160, 120, 0), interpolation="nearest")
    theirs.set_axis_off()
    (picture, where), (expected, there) = *held_in_svg(ours), *held_in_svg(theirs)
    assert where == there
    np.testing.assert_array_equal(picture, expected)


def test_panels_can_be_given_ticks_and_a_grid_afterwards():
    shown = []
    for kind in (Panel, Axes):
        ax = axes(cls=kind)
        ax.set_position((0.1, 0.1, 0.8, 0.8))
        plain = canvas_of(ax.figure)
        ax.grid(True)
        ax.tick_params(length=9)
        shown.append((plain, canvas_of(ax.figure)))
    np.testing.assert_allclose(shown[0], shown[1], atol=12)  # where a line meets the edge


@pytest.mark.parametrize("dpi", [40, 97, 150])
def test_a_png_holds_what_was_drawn(dpi, field, photo, tmp_path):
    figure = draw.figure3(field, photo)
    saved = Image.open(draw.save(figure, tmp_path / "figure.png", dpi=dpi))
    assert (saved.mode, saved.info["Software"], round(saved.info["dpi"][0])) == ("RGB", "deformscope", dpi)
    raw = io.BytesIO()
    figure.savefig(raw, format="rgba", dpi=dpi)
    drawn = np.frombuffer(raw.getvalue(), np.uint8).reshape(saved.height, saved.width, 4)
    np.testing.assert_array_equal(np.asarray(saved), drawn[..., :3])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_any_picture_comes_back_from_its_png(height, wide, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, wide, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(pixels, 150)))), pixels)


@pytest.mark.parametrize("name", ["figure", "figure.bmp", "figure.png.gz"])
def test_formats_that_are_not_written_are_named(name, tmp_path):
    with pytest.raises(DeformscopeError, match=r"expected a name ending in one of \.png, \.svg, \.pdf"):
        draw.save(Figure(), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dpi", [72, 100, 150, 300])
def test_text_is_no_wider_than_it_was_measured_and_hardly_narrower(dpi):
    for words in ("circles: radius r = √(width·height), ×1000, every 4th cell", "iiiiii", "WWWW", "d$5"):
        ax = axes()
        ax.figure.set_dpi(dpi)
        text = ax.text(0, 60, words, fontsize=8, fontfamily="DejaVu Sans", parse_math=False)
        canvas_of(ax.figure)
        drawn = text.get_window_extent().width / dpi
        assert drawn - 0.02 <= width(escaped(words), 8) <= 1.09 * drawn + 0.02


@given(st.lists(st.text("abcdefgh W·√", min_size=1, max_size=30), min_size=1, max_size=12), st.floats(0.3, 4))
@example(["· aaa··W"], 0.34375)
@settings(deadline=None)
def test_lines_end_no_earlier_than_they_must(words, inches):
    text = " ".join(" ".join(words).split())
    lines = wrapped(text, 7, inches)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    end = 0
    for line, following in itertools.pairwise(lines):
        assert width(line, 7) <= inches or len(line) == 1
        end += len(line)
        if text[end] == " ":  # a word that fits no line begins a new one too
            end += 1
            assert width(f"{line} {text[end:].split(' ')[0]}", 7) > inches
        else:
            assert width(f"{line}{following[0]}", 7) > inches


def test_figures_of_very_long_photos_stay_of_a_size_that_can_be_looked_at():
    for size, count, inches in (((4000, 100), 3, 16), ((1, 2000), 3, 14), ((200, 1120), 3, 14)):
        result = row_of_panels(count, size)
        result.fit(0.6)
        assert max(result.figure.get_size_inches()) < inches
    assert row_of_panels(3, (200, 1120)).tall > 2  # inches


def test_a_long_name_is_broken_between_its_parts():
    assert wrapped("backbone.transformer.encoder.layers.11.self_attn", 8, 2.2) == [
        "backbone.transformer.encoder.",
        "layers.11.self_attn",
    ]
