"""d_f as a flow: the wheel's colours, the frames' groups and the diversity."""

import numpy as np
import pytest
import torch
from matplotlib.colors import rgb_to_hsv

import deformscope
from deformscope import draw
from deformscope.draw.flow import colours


def aligned(groups=4) -> deformscope.OffsetField:
    """Half of the groups move 2 cells to the right, the others 1 cell down, each point ±0.5 cell around it, in x."""
    offset = torch.zeros(1, groups, 9, 6, 8, 2)
    offset[:, : groups // 2, ..., 1] += 2
    offset[:, groups // 2 :, ..., 0] += 1
    offset[:, ::2, ..., 1] += 0.5
    offset[:, 1::2, ..., 1] -= 0.5
    flat = offset.permute(0, 1, 2, 5, 3, 4).reshape(1, -1, 6, 8)
    return deformscope.OffsetField.from_tensor(
        flat, kernel_size=3, offset_groups=groups, padding=1, reduction=(10.0, 5.0), origin=(5.0, 2.5), name="align"
    )


PHOTO = np.zeros((60, 40, 3), dtype=np.uint8)


def panels(figure) -> list:
    return [ax for ax in figure.axes if ax.get_images() and ax.get_images()[0].get_array().shape[:2] == (6, 8)]


def test_the_wheel_turns_from_right_through_down():
    vectors = np.array([[[0.0, 1], [1, 0], [0, -1], [-1, 0], [0, 0], [0, 0.5], [np.nan, 0]]])
    hsv = rgb_to_hsv(colours(vectors, 1.0))[0]
    np.testing.assert_allclose(hsv[:4, 0], [0, 0.25, 0.5, 0.75], atol=1e-6)
    np.testing.assert_allclose(hsv[:6, 1], [1, 1, 1, 1, 0, 0.5], atol=1e-6)
    np.testing.assert_allclose(colours(vectors, 1.0)[0, 6], [0.5, 0.5, 0.5])


def test_frames_share_the_groups_and_each_is_the_mean_over_its_own():
    figure = draw.flow(aligned(), PHOTO, frames=("before", "after"), limit=10.0)
    first, second = panels(figure)
    np.testing.assert_allclose(
        first.get_images()[0].get_array(), colours(np.full((6, 8, 2), [0.0, 10.0]), 10.0), atol=1e-6
    )
    np.testing.assert_allclose(
        second.get_images()[0].get_array(), colours(np.full((6, 8, 2), [10.0, 0.0]), 10.0), atol=1e-6
    )
    words = " ".join(text.get_text() for text in first.texts)
    assert "before" in words and "groups 0 to 1" in words
    assert "mean length 10 px" in words and "diversity 2.5 px" in words


def test_without_frames_every_group_has_a_panel_over_its_cells():
    figure = draw.flow([aligned(), aligned(2)], PHOTO)
    shown = panels(figure)
    assert len(shown) == 6
    np.testing.assert_allclose(shown[0].get_images()[0].get_extent(), (0, 40, 60, 0), atol=1e-6)
    lone = draw.flow(aligned(), PHOTO, frames=("one",))
    assert len(panels(lone)) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": ("a", "b", "c")}, "cannot be divided evenly between 3"),
        ({"limit": 0.0}, "limit=0.0: expected a length"),
    ],
)
def test_what_cannot_be_drawn_is_said(change, said):
    with pytest.raises(deformscope.DeformscopeError, match=said):
        draw.flow(aligned(), PHOTO, **change)
