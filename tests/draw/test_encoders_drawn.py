"""Figures of encoders with deformable attention: a panel for each level, laid out evenly, with legible circles."""

import re

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from deformscope.draw import figure3
from deformscope.draw.panels import FieldView
from deformscope.draw.sheet import row_of_panels
from deformscope.fields.attention import AttentionField, levels_of
from deformscope.fields.moments import moments


@pytest.mark.parametrize(
    ("count", "size", "layout"),
    [
        (3, (300, 450), (1, 3)),
        (4, (300, 450), (2, 2)),
        (5, (300, 450), (2, 3)),
        (4, (450, 300), (1, 4)),
        (6, (450, 300), (2, 3)),
    ],
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
    figure = figure3(kernels, np.zeros((299, 450, 3), np.uint8))
    factor = float(re.search(r"×([\d.]+), every", " ".join(text.get_text() for text in figure.findobj(Text)))[1])
    assert np.median(view.radii) * factor <= view.spacing
