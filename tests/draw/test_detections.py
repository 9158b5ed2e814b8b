"""Detections in figures: one box per place, a handful at most, and labels that can all be read."""

import itertools

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.text import Annotation

from deformscope import draw
from deformscope.draw.primitives import shown_detections
from deformscope.draw.sampling_points import centres_of_boxes

CLASSES = ["cow", "horse", "sheep"]


def detection(boxes, scores, labels=None):
    labels = range(len(boxes)) if labels is None else labels
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(list(labels)),
    }


def outlines(ax):
    return next(len(a.get_paths()) for a in ax.collections if type(a) is PolyCollection)


def labels(figure):
    """The labels by their axes, and the places that they fill, px."""
    FigureCanvasAgg(figure).draw()
    found = [t for t in figure.findobj(Annotation) if t.get_bbox_patch() is not None]
    return [(t.axes, t.get_text(), t.get_bbox_patch().get_window_extent()) for t in found]


def test_one_animal_with_boxes_of_three_classes_gets_the_best_of_them(field, photo):
    found = detection([[20, 20, 90, 100], [22, 18, 92, 101], [18, 22, 88, 97]], [0.6, 0.9, 0.7])
    figure = draw.figure2(field, photo, detection=found, class_names=CLASSES)
    assert outlines(figure.axes[0]) == 1
    assert [text for _, text, _ in labels(figure)] == ["horse 0.90"]
    assert centres_of_boxes(found, 0.5, (120, 160)) == [(59.5, 57.0)]


def test_objects_beside_and_within_each_other_keep_their_boxes():
    apart = detection([[0, 0, 40, 40], [60, 0, 100, 40], [10, 10, 25, 25]], [0.6, 0.9, 0.7])
    assert shown_detections(apart, 0.5).tolist() == [1, 2, 0]
    assert shown_detections(apart, 0.65).tolist() == [1, 2]


def test_a_handful_of_many_detections_is_drawn_and_all_on_request(field, photo):
    boxes = [[15 * i, 10 * j, 15 * i + 12, 10 * j + 8] for i in range(8) for j in range(8)]
    found = detection(boxes, torch.linspace(0.99, 0.6, 64).tolist(), [0] * 64)
    assert outlines(draw.figure2(field, photo, detection=found, class_names=CLASSES).axes[0]) == 5
    ax = draw.figure2(field, photo).axes[0]
    artist = draw.boxes(ax, found, CLASSES, most=64, same_place=1.0, labels=False)
    assert len(artist.get_paths()) == 64


@pytest.mark.parametrize("kind", ["figure2", "overview"])
@pytest.mark.parametrize("width", [1.0, 0.4])
def test_labels_stay_inside_their_panel_and_off_each_other(kind, width, field, photo):
    """Of boxes near each other, near the right edge and partly outside."""
    boxes = [[140, 2, 158, 60], [120, 8, 150, 90], [150, 1, 170, 30], [-20, 5, 30, 60], [100, 3, 139, 70]]
    found = detection([[x * width if x > 0 else x for x in box] for box in boxes], [0.9, 0.8, 0.7, 0.65, 0.6], [0] * 5)
    names = ["a class of a long name"]
    figure = getattr(draw, kind)([field, field], photo, detection=found, class_names=names)
    shown = labels(figure)
    assert len(shown) == 10
    for ax, text, frame in shown:
        assert frame.x0 >= ax.bbox.x0 - 2 and frame.x1 <= ax.bbox.x1 + 2, text
        assert frame.y0 >= ax.bbox.y0 - 2 and frame.y1 <= ax.bbox.y1 + 2, text
    for (one_ax, a, one), (other_ax, b, other) in itertools.combinations(shown, 2):
        if one_ax is other_ax:
            across, down = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
            assert across < 1 or down < 1, (a, b)


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)},
        {"boxes": torch.tensor([[float("nan"), 0, 10, 10]]), "scores": torch.tensor([0.9])},
        {"boxes": torch.tensor([[0.0, 0, 10, 10]])},
    ],
)
def test_what_has_no_usable_boxes_or_no_scores_is_drawn_too(found, field, photo):
    figure = draw.figure2(field, photo, detection=found)
    drawn = outlines(figure.axes[0])
    assert drawn == (1 if "boxes" in found and "scores" not in found else 0)
    draw.overview(field, photo, detection=found)
