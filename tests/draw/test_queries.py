"""Object queries over the photo: every point where it is, heavy ones on top."""

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.patches import Rectangle
from matplotlib.text import Text

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


def dense() -> AttentionField:
    """An encoder's: a query for each of the 100 cells."""
    field = planted(boxes=False)
    cells = [
        one.expand(-1, 50, *one.shape[2:])
        for one in (field.points[:, :1], field.weights[:, :1], field.level_reference[:, :1])
    ]
    doubled = [torch.cat([one, one], dim=1) for one in cells]
    return AttentionField(*doubled, field.level, ((8, 10), (4, 5)), (60, 80), name="encoder")


def test_the_encoders_of_a_capture_are_left_out_beside_its_decoders():
    photo = np.zeros((60, 80, 3), dtype=np.uint8)
    figure = draw.queries({"encoder": dense(), "first": planted(), "second": planted(boxes=False)}, photo, [1])
    captions = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert any("decoder layer 2 of 2" in one for one in captions)
    assert not any("of 3" in one for one in captions)


def test_points_lie_in_the_photos_px_and_weights_are_sizes():
    field = planted()
    photo = np.zeros((120, 240, 3), dtype=np.uint8)
    placed = AttentionField(**vars(field) | {"placements": (deformscope.Placement((120, 240), (0.5, 1 / 3)),)})
    figure = draw.queries([placed, placed], photo, [1])
    assert len(figure.axes) == 2 and figure.legends
    (dots,) = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    weights = field.weights[0, 1].flatten()
    order = weights.argsort()
    wanted = field.points[0, 1].reshape(-1, 2)[order] * torch.tensor([2.0, 3.0])
    np.testing.assert_allclose(np.asarray(dots.get_offsets()), wanted.flip(-1).numpy(), rtol=1e-5)
    assert (np.diff(dots.get_sizes()) >= 0).all()
    # The shape tells the level: round on the first map, a square (whose path has straight lines alone) on the second.
    straight = [
        bool(np.isin(path.codes, (None, 1, 2, 79)).all()) if path.codes is not None else True
        for path in dots.get_paths()
    ]
    assert straight == [bool(field.level.repeat(3)[index] == 1) for index in order]


def test_sizes_are_written_as_those_of_maps_height_first():
    field = planted()
    figure = draw.queries(field, np.zeros((60, 80, 3), np.uint8), [1])
    words = " ".join(text.get_text() for text in figure.findobj(Text)).replace("\N{NO-BREAK SPACE}", " ")
    high, wide = field.spread()[0, 1].tolist()
    assert round(high) != round(wide)
    assert f"spread {high:.0f} × {wide:.0f} px in a box of 8 × 16" in " ".join(words.split())
    assert "on the 8×10 map" in words


def test_a_point_beyond_the_photo_is_shown_where_it_is_or_counted():
    field = planted()
    points = field.points.clone()
    points[0, 0, 0, 0], points[0, 0, 0, 1] = torch.tensor([-1.5, 40.0]), torch.tensor([-500.0, 40.0])
    weights = torch.full_like(field.weights, 1 / 3)
    figure = draw.queries(
        AttentionField(**vars(field) | {"points": points, "weights": weights}), np.zeros((60, 80, 3), np.uint8), [0]
    )
    bottom, top = figure.axes[0].get_ylim()
    assert top < -1.5 and bottom <= 60 * 1.04 + 1e-6
    assert "1 not shown" in " ".join(text.get_text() for text in figure.axes[0].texts)


def test_references_that_are_points_are_drawn_without_boxes_but_with_what_was_found():
    field = planted(boxes=False)
    figure = draw.queries(field, np.zeros((60, 80, 3), np.uint8), [0, 1], boxes=[[20, 10, 50, 40], [5, 5, 30, 20]])
    shown = [patch.get_bbox().bounds for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert set(shown) == {(20.0, 10.0, 30.0, 30.0)}
    assert "from the reference" in " ".join(text.get_text() for text in figure.axes[0].texts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen": [2]}, "chosen=2: expected 0 to 1"),
        ({"head": 3}, "head=3: expected 0 to 2"),
        ({"image": 1}, "image=1: expected 0 to 0"),
        ({"titles": ["a", "b"]}, "titles: 2 given for 1 queries"),
        ({"chosen": []}, "chosen: no queries given"),
        ({"boxes": [[1, 2, 3, 4]] * 2}, "boxes: 2 given for 1 queries"),
        ({"fields": dense()}, "field.dense"),
    ],
)
def test_what_cannot_be_drawn_is_said(change, said):
    arguments = {"fields": planted(), "photo": np.zeros((60, 80, 3), np.uint8), "chosen": [0]} | change
    with pytest.raises(deformscope.DeformscopeError, match=said):
        draw.queries(**arguments)


def test_radius_and_size_are_those_of_the_photo_and_an_even_box_lies_on_the_line():
    grid = (torch.arange(40) + 0.5) / 40 - 0.5
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    boxes = torch.tensor([[30.0, 40.0, 20.0, 30.0], [30.0, 40.0, 8.0, 16.0]])
    points = boxes[:, None, None, :2] + torch.stack([y, x], -1).view(1, 1, -1, 2) * boxes[:, None, None, 2:]
    field = AttentionField(
        points[None],
        None,
        boxes[None, :, None],
        torch.zeros(1600, dtype=torch.int64),
        ((8, 10),),
        (60, 80),
        (deformscope.Placement((120, 240), (0.5, 1 / 3)),),
        name="even",
    )
    figure = draw.query_sizes([field, field], [1], titles=["cat 0.90"])
    assert len(figure.axes) == 2
    every, chosen = [c.get_offsets() for c in figure.axes[0].collections]
    wanted = np.sqrt([20 * 30, 8 * 16]) * np.sqrt(6)
    np.testing.assert_allclose(every[:, 0], wanted, rtol=1e-5)
    np.testing.assert_allclose(every[:, 1], wanted / np.sqrt(3), rtol=2e-3)
    np.testing.assert_allclose(chosen, every[1:])
    line = figure.axes[0].lines[0].get_xydata()
    np.testing.assert_allclose(line[:, 1] / line[:, 0], 1 / np.sqrt(3))
    assert "cat 0.90" in [text.get_text() for text in figure.legends[0].get_texts()]
    with pytest.raises(deformscope.DeformscopeError, match="chosen=2: expected 0 to 1"):
        draw.query_sizes(field, [2])
    with pytest.raises(deformscope.DeformscopeError, match="which have no size"):
        draw.query_sizes(planted(boxes=False))
