"""Object queries over the photo: every point where it is, heavy ones on top."""

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection

import deformscope
from deformscope import draw
from deformscope.fields.attention import AttentionField, levels_of


def planted(boxes: bool = True) -> AttentionField:
    """Two queries, three heads, two levels with two and one points, on an input of 60 × 80 px."""
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(1, 2, 3, 3, 2, generator=generator) * torch.tensor([60.0, 80.0])
    weights = torch.rand(1, 2, 3, 3, generator=generator).softmax(-1)
    reference = torch.tensor([[30.0, 40.0, 20.0, 30.0], [10.0, 20.0, 8.0, 16.0]])[None, :, None].expand(-1, -1, 2, -1)
    return AttentionField(
        points,
        weights,
        reference if boxes else reference[..., :2],
        levels_of([2, 1]),
        ((8, 10), (4, 5)),
        (60, 80),
        name="a",
    )


def test_points_lie_in_the_photos_px_and_weights_are_sizes():
    field = planted()
    photo = np.zeros((120, 240, 3), dtype=np.uint8)
    placed = AttentionField(**vars(field) | {"placements": (deformscope.Placement((120, 240), (0.5, 1 / 3)),)})
    figure = draw.queries([placed, placed], photo, [1])
    assert len(figure.axes) == 2
    (dots,) = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    weights = field.weights[0, 1].flatten()
    order = weights.argsort()
    wanted = field.points[0, 1].reshape(-1, 2)[order] * torch.tensor([2.0, 3.0])
    np.testing.assert_allclose(np.asarray(dots.get_offsets()), wanted.flip(-1).numpy(), rtol=1e-5)
    assert (np.diff(dots.get_sizes()) >= 0).all()


def test_centre_and_viewpoints_are_weighted_means():
    field = planted()
    share = field.weights[0, 1].flatten() / field.weights[0, 1].sum()
    np.testing.assert_allclose(
        field.centre()[0, 1], (share[:, None] * field.points[0, 1].reshape(-1, 2)).sum(0), rtol=1e-5
    )
    d_f, d_k = field.split()
    torch.testing.assert_close(d_f + d_k, field.displacement())
    torch.testing.assert_close((d_k * field.weights[..., None]).sum(3), torch.zeros(1, 2, 3, 2), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen": [2]}, "chosen=2: expected queries from 0 to 1"),
        ({"head": 3}, "head=3: expected 0 to 2"),
        ({"image": 1}, "image=1: expected 0 to 0"),
        ({"titles": ["a", "b"]}, "titles: 2 given for 1 queries"),
        ({"chosen": []}, "expected at least one of each"),
        ({"fields": planted(boxes=False)}, "field.dense"),
    ],
)
def test_what_cannot_be_drawn_is_said(change, said):
    arguments = {"fields": planted(), "photo": np.zeros((60, 80, 3), np.uint8), "chosen": [0]} | change
    with pytest.raises(deformscope.DeformscopeError, match=said):
        draw.queries(**arguments)
