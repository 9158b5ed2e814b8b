"""Layout: text is measured and wrapped, sheets keep a readable size, files have known formats."""

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from deformscope import DeformscopeError, draw
from deformscope.draw.panels import FieldView
from deformscope.draw.sheet import row_of_panels
from deformscope.draw.text import escaped, width, wrapped
from deformscope.fields.attention import AttentionField, levels_of
from deformscope.fields.moments import moments


def canvas_of(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def axes(size=(4.0, 3.0)):
    ax = Figure(figsize=size, dpi=100).add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 160), ylim=(120, 0))
    return ax


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
    lines = wrapped("backbone.transformer.encoder.layers.11.self_attn", 8, 2.2)
    assert lines == ["backbone.transformer.encoder.", "layers.11.self_attn"]


@pytest.mark.parametrize(
    ("count", "size", "layout"), [(3, (300, 450), (1, 3)), (4, (300, 450), (2, 2)), (4, (450, 300), (1, 4))]
)
def test_panels_are_spread_evenly_over_rows(count, size, layout):
    panels = row_of_panels(count, size).panels
    assert (len(panels), len(panels[0])) == layout


def test_circles_of_attention_do_not_hide_the_photo_and_cells_have_two_digits():
    """Its spread is far larger than a cell, and nearly the same everywhere."""
    random = torch.Generator().manual_seed(0)
    q, level = 30 * 45, levels_of([4])
    reference = torch.rand(1, q, 1, 2, generator=random) * 300
    moved = torch.randn(1, q, 8, 4, 2, generator=random) * 60
    field = AttentionField(reference[:, :, level][:, :, None] + moved, None, reference, level, ((30, 45),), (299, 450))
    kernels = moments(field, 0)
    view = FieldView.of(kernels, (299, 450))
    assert view.caption().endswith(" 10\N{NO-BREAK SPACE}px/cell")
    figure = draw.figure3(kernels, np.zeros((299, 450, 3), np.uint8))
    factor = float(re.search(r"×([\d.]+), every", " ".join(text.get_text() for text in figure.findobj(Text)))[1])
    assert np.median(view.radii) * factor <= view.spacing
