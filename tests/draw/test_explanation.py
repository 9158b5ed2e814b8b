"""Figures of explanations hold the attributions' numbers, at the points' places, in the box's surroundings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from deformscope import DeformscopeError, OffsetField, Placement, draw
from deformscope.attribution import Attribution, Explanation, ReceptiveField
from deformscope.attribution.attention import AttentionAttribution
from deformscope.backdrop import Backdrop
from deformscope.draw.explanation import LEAST_SHARE, attributions, contours
from deformscope.draw.panels import Window
from deformscope.fields.attention import AttentionField

PHOTO = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
PLACEMENT = Placement((120, 160), (0.5, 0.5))


def layer(name="upper", g=2, reduction=8.0, seed=0):
    """Random attributions of a kernel (3, 2) whose cells cover the photo."""
    random = torch.Generator().manual_seed(seed)
    h, w = round(60 / reduction), round(80 / reduction)
    field = OffsetField.from_tensor(
        torch.randn(1, 12 * g, h, w, generator=random),
        kernel_size=(3, 2),
        offset_groups=g,
        reduction=reduction,
        placements=[PLACEMENT],
        name=name,
    )
    points = torch.randn(g, 6, h, w, generator=random) ** 3
    return Attribution(field, points, torch.randn(g, 6, h, w, 2, generator=random))


def explanation(*layers, box=(20.0, 10.0, 130.0, 100.0), of="score"):
    y, x = np.mgrid[:60, :80]
    gradient = torch.from_numpy(np.exp(-((y - 30) ** 2 + (x - 50) ** 2) / 200)).float()
    return Explanation(
        {one.field.name: one for one in layers},
        ReceptiveField(gradient, PLACEMENT),
        of,
        1.5,
        PHOTO,
        {"boxes": torch.tensor([box]), "labels": torch.tensor([1]), "scores": torch.tensor([0.75])},
        ("cat", "dog"),
        "net",
    )


def dots(ax):
    (found,) = [artist for artist in ax.get_children() if isinstance(artist, EllipseCollection)]
    return found


def texts(figure):
    return " ".join(text.get_text() for ax in figure.axes for text in ax.texts)


def test_dots_are_at_the_points_with_their_sign_and_area():
    one = layer()
    ax = Figure(figsize=(4, 3)).add_axes((0, 0, 1, 1))
    shown = attributions(ax, Backdrop.of(PHOTO), one, Window.around(None, (120, 160)))
    values, places = one.points.flatten().numpy(), one.places().reshape(-1, 2).numpy()
    strong = np.abs(values) >= LEAST_SHARE * np.abs(values).max()
    assert 20 < shown == strong.sum() < len(values)
    order = np.argsort(np.abs(values[strong]))
    artist = dots(ax)
    np.testing.assert_allclose(artist.get_offsets(), places[strong][order][:, ::-1], rtol=1e-5)
    np.testing.assert_array_equal(np.sign(artist.get_array()), np.sign(values[strong][order]))
    areas = np.asarray(artist.get_widths()) ** 2
    np.testing.assert_allclose(areas / areas[-1], (np.abs(values[strong]) / np.abs(values).max())[order], rtol=1e-4)
    colours = artist.to_rgba(artist.get_array())
    red = np.asarray(artist.get_array()) > 0
    assert (colours[red, 0] > colours[red, 2]).all()
    assert (colours[~red, 2] > colours[~red, 0]).all()


def test_a_panel_a_layer_that_matters_from_the_output_down_and_one_of_the_receptive_field():
    unused = replace(layer("unused"), points=torch.zeros(2, 6, 8, 10))
    why = explanation(layer("lower", seed=1), unused, layer("upper"))
    figure = draw.explanation(why)
    assert len(figure.axes) == 3
    shown = texts(figure)
    assert shown.index("upper ·") < shown.index("lower ·") < shown.index("receptive field")
    assert "unused" not in shown
    assert "dog 0.75" in shown
    assert "log-odds of dog" in shown
    assert len(draw.explanation(why, receptive_field=False).axes) == 2
    assert len(draw.explanation(why, layers=["lower"]).axes) == 2
    assert "the box's left side" in texts(draw.explanation(replace(why, of="left"), layers=["upper"]))


def test_of_many_layers_the_last_of_each_reduction_is_shown():
    layers = [layer(f"block{index}", reduction=8.0 if index < 3 else 4.0) for index in range(5)]
    shown = texts(draw.explanation(explanation(*layers)))
    assert [f"block{index} ·" in shown for index in range(5)] == [False, False, True, False, True]


def test_the_surroundings_of_small_boxes_are_enlarged():
    why = explanation(layer(), box=(100.0, 60.0, 120.0, 80.0))
    near, field = draw.explanation(why).axes
    (left, right), (bottom, top) = near.get_xlim(), near.get_ylim()
    assert (right - left) / (bottom - top) == pytest.approx(160 / 120)
    assert 0 <= left < 100
    assert 120 < right <= 160
    assert right - left < 80
    frame = [patch for patch in field.patches if isinstance(patch, Rectangle)][-1]
    assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == pytest.approx(
        (left, top, right - left, bottom - top)
    )
    assert draw.explanation(why, zoom=False).axes[0].get_xlim() == (0, 160)
    assert draw.explanation(explanation(layer())).axes[0].get_xlim() == (0, 160)


def test_the_inner_contour_holds_half():
    ax = Figure(figsize=(4, 3)).add_axes((0, 0, 1, 1))
    field = explanation(layer()).receptive_field
    artist = contours(ax, field)
    assert isinstance(artist, QuadContourSet)
    heat = field.heatmap()
    y, x = np.mgrid[:120, :160] + 0.5
    inner = artist.get_paths()[1]
    inside = inner.contains_points(np.stack([x, y], axis=-1).reshape(-1, 2)).reshape(120, 160)
    assert heat[inside].sum() / heat.sum() == pytest.approx(0.5, abs=0.06)
    assert contours(ax, ReceptiveField(torch.zeros(6, 8), PLACEMENT)) is None


def test_receptive_fields_stand_side_by_side():
    why = explanation(layer())
    figure = draw.receptive_field({"with offsets": why, "without": replace(why, layers={})})
    assert len(figure.axes) == 2
    assert "receptive field · without" in texts(figure)
    assert len(draw.receptive_field(why).axes) == 1


def attention(name="decoder.1", queries=5, boxes=True, seed=0):
    """Random attributions of object queries, or of an encoder's 12 + 6 cells."""
    random = torch.Generator().manual_seed(seed)
    field = AttentionField(
        torch.rand(1, queries, 2, 3, 2, generator=random) * torch.tensor([60.0, 80.0]),
        torch.full((1, queries, 2, 3), 1 / 3),
        torch.tensor([30.0, 40.0, 20.0, 30.0])[: 4 if boxes else 2].expand(1, queries, 2, -1),
        torch.tensor([0, 0, 1]),
        ((3, 4), (2, 3)),
        (60, 80),
        (PLACEMENT,),
        name=name,
    )
    return AttentionAttribution(field, torch.randn(queries, 2, 3, generator=random))


def with_attention(*layers, query=None):
    why = replace(explanation(), attention={one.field.name: one for one in layers})
    return why if query is None else replace(why, detection=why.detection | {"query": torch.tensor([query])})


@pytest.mark.parametrize(("query", "drawn"), [(3, 3), (None, None), (99, None)])
def test_panels_of_a_decoder_show_the_detections_query_from_the_output_downwards(query, drawn):
    layers = [attention(f"decoder.{number}", seed=number) for number in range(4)]
    strongest = layers[-1].points.abs().sum(dim=(1, 2)).argmax().item()
    drawn = strongest if drawn is None else drawn
    figure = draw.explanation(with_attention(attention("encoder", 18), *layers, query=query))
    titles = [text.get_text() for ax in figure.axes for text in ax.texts if "coder" in text.get_text()]
    assert [title.split(" · ")[:2] for title in titles] == [
        [f"decoder.{number}", f"query {drawn}"] for number in (3, 2, 1)
    ]
    for ax, layer in zip(figure.axes, layers[:0:-1], strict=False):
        artist = dots(ax)
        values = layer.points[drawn].flatten().numpy()
        places = layer.places()[drawn].reshape(-1, 2).numpy()
        order = np.argsort(np.abs(values))
        order = order[np.abs(values[order]) >= LEAST_SHARE * np.abs(values).max()]
        np.testing.assert_allclose(artist.get_offsets(), places[order][:, ::-1], rtol=1e-6)
        assert (np.sign(artist.get_array()) == np.sign(values[order])).all()
        areas = np.asarray(artist.get_widths()) ** 2  # proportional to magnitude, except of the weakest
        assert areas[-1] / areas[-2] == pytest.approx(abs(values[order[-1]] / values[order[-2]]), rel=1e-5)
        box = next(patch for patch in ax.patches if patch.get_linestyle() == "--")
        assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == pytest.approx((50, 40, 60, 40))
    assert "of the layer's magnitude; dashed: its reference box" in texts(figure)


def test_captions_are_above_the_panels_below_them():
    layers = [
        attention(f"detector.net.model.decoder.layers.{number}.encoder_attn.sampler", seed=number)
        for number in range(3)
    ]
    figure = draw.explanation(with_attention(*layers, query=2))
    assert len(figure.axes) == 4
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    written = [text.get_window_extent(renderer).y0 for ax in figure.axes[:2] for text in ax.texts]
    assert min(written) > figure.axes[2].get_window_extent(renderer).y1
    assert min(text.get_window_extent(renderer).y0 for ax in figure.axes for text in ax.texts) > 0


def test_a_named_encoder_shows_the_points_of_all_queries():
    encoder = attention("encoder", 18)
    why = with_attention(encoder, attention(boxes=False), query=1)
    figure = draw.explanation(why, layers=["encoder"], receptive_field=False)
    values = encoder.points.abs()
    assert len(dots(figure.axes[0]).get_offsets()) == int((values >= LEAST_SHARE * values.max()).sum())
    assert "query" not in texts(figure)
    figure = draw.explanation(why, layers=["decoder.1"], receptive_field=False)
    assert not [patch for patch in figure.axes[0].patches if patch.get_linestyle() == "--"]
    with pytest.raises(DeformscopeError, match=r"layers='x': expected some of the explained layers: 'encoder', 'decod"):
        draw.explanation(why, layers=["x"])


def test_what_cannot_be_drawn_is_an_error():
    why = explanation(layer())
    with pytest.raises(DeformscopeError, match=r"photo=None: the explanation is of a model that prepares no photos"):
        draw.explanation(replace(why, photo=None))
    draw.explanation(replace(why, photo=None), PHOTO)
    with pytest.raises(DeformscopeError, match=r"depends on no deformable convolution"):
        draw.explanation(explanation(), receptive_field=False)
    with pytest.raises(DeformscopeError, match=r"explained: none given"):
        draw.receptive_field({})
    with pytest.raises(DeformscopeError, match=r"layer='x': expected one of the explained layers: 'upper'"):
        draw.explanation(why, layers=["x"])


def test_models_without_boxes_and_labels_are_drawn():
    why = replace(explanation(layer()), detection={}, of="<lambda>")
    assert "<lambda>" in texts(draw.explanation(why))
