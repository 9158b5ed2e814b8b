"""The same field gives the same picture, whatever the user's matplotlib settings say."""

import os
import subprocess
import sys

import matplotlib as mpl
import matplotlib.style
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from deformscope import draw

OTHERS = {
    "LaTeX": {"text.usetex": True},
    "fonts": {"font.family": "serif", "font.size": 23, "mathtext.fontset": "stix", "axes.unicode_minus": False},
    "images": {"image.origin": "lower", "image.aspect": "auto", "image.interpolation": "bicubic", "image.cmap": "jet"},
    "figures": {"figure.autolayout": True, "figure.facecolor": "black", "figure.dpi": 33, "axes.facecolor": "red"},
    "saving": {"savefig.bbox": "tight", "savefig.dpi": 300, "savefig.transparent": True, "savefig.facecolor": "red"},
    "lines": {"lines.antialiased": False, "path.sketch": (1, 100, 2), "patch.antialiased": False, "axes.grid": True},
    "files": {"svg.fonttype": "path", "svg.hashsalt": "other", "pdf.fonttype": 3, "pdf.compression": 0},
}


@pytest.mark.parametrize("kind", ["figure1", "figure2", "figure3", "sampling", "overview", "segments"])
def test_a_figure_looks_the_same_under_any_settings(kind, field, photo, tmp_path):
    make = getattr(draw, kind)
    usual = draw.save(make(field, photo), tmp_path / "usual.png", dpi=40).read_bytes()
    with mpl.rc_context({key: value for settings in OTHERS.values() for key, value in settings.items()}):
        before = dict(mpl.rcParams)
        figure = make(field, photo)
        assert draw.save(figure, tmp_path / "other.png", dpi=40).read_bytes() == usual
        assert dict(mpl.rcParams) == before
    assert draw.save(figure, tmp_path / "later.png", dpi=40).read_bytes() == usual


@pytest.mark.parametrize("suffix", ["svg", "pdf"])
def test_other_formats_are_the_same_under_any_settings(suffix, field, photo, tmp_path):
    usual = draw.save(draw.figure2(field, photo), tmp_path / f"usual.{suffix}").read_bytes()
    with matplotlib.style.context("dark_background"), mpl.rc_context({**OTHERS["LaTeX"], **OTHERS["files"]}):
        assert draw.save(draw.figure2(field, photo), tmp_path / f"other.{suffix}").read_bytes() == usual


def test_the_users_own_way_to_draw_gives_the_same_too(field, photo):
    figure = draw.figure3(field, photo)
    shown = []
    for settings in ({}, OTHERS["LaTeX"] | OTHERS["fonts"]):
        with mpl.rc_context(settings):
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            shown.append((bytes(canvas.buffer_rgba()), figure._repr_png_()))
    assert shown[0] == shown[1]


def test_parts_leave_the_figure_that_they_draw_on_as_it_is(photo):
    from matplotlib.figure import Figure

    with mpl.rc_context({"image.origin": "lower"}):
        ax = Figure().add_axes((0, 0, 1, 1))
        draw.photo(ax, photo)
        canvas = FigureCanvasAgg(ax.figure)
        canvas.draw()
    # The photo is upright, and the rest of the axes is theirs.
    assert ax.get_ylim() == (120, 0)


DRAWN = """
import numpy as np, torch
from deformscope import OffsetField, draw
field = OffsetField.from_tensor(torch.linspace(-1, 1, 18 * 30).view(1, 18, 5, 6), reduction=8.0)
draw.save(draw.figure2(field, np.full((40, 48, 3), 90, np.uint8)), "figure.png", dpi=60)
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The picture that a new process draws with more environment variables than it has."""

    def draw_in(more):
        folder = tmp_path_factory.mktemp("drawn")
        environment = {key: value for key, value in os.environ.items() if key not in ("MPLBACKEND", "MATPLOTLIBRC")}
        subprocess.run([sys.executable, "-c", DRAWN], cwd=folder, env=environment | more, check=True)
        return (folder / "figure.png").read_bytes()

    return draw_in


@pytest.fixture(scope="module")
def plain(drawn):
    return drawn({})


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "of-another-environment"])
def test_a_backend_inherited_from_a_notebook_and_a_matplotlibrc_change_nothing(backend, drawn, plain, tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.size: 30\nsavefig.bbox: tight\n")
    assert drawn({"MPLBACKEND": backend, "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}) == plain
