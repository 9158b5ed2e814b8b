"""Switching points off does what it says, to the points through which a detection's evidence can come."""

import numpy as np
import pytest
import torch
from torch import nn

import deformscope as ds
from deformscope import DeformscopeError
from deformscope.attribution.faithfulness import KINDS, ORDERS, SHARES, candidates, faithfulness
from deformscope.detectors.dense.dense import DenseConfig, DenseDetector
from deformscope.ops.intercept import intercepting


@pytest.fixture(scope="module")
def packaged():
    return ds.load("packaged")


@pytest.fixture(scope="module")
def why(packaged, cat):
    return ds.explain(packaged, cat)


def without_norms():
    """A dense detector of two layers a head in which cells meet through the sampling points alone."""
    torch.manual_seed(1)
    detector = DenseDetector(DenseConfig(("cat", "dog"), channels=16, deform_layers=2, shorter_side=96)).eval()
    for head in detector.heads.values():
        head.before[1], head.norm = nn.Identity(), nn.Identity()
        for layer in (head.before[0], head.deform):
            nn.init.normal_(layer.conv_offset.weight, std=0.1)
        nn.init.normal_(head.cls.weight, std=0.5)
    return detector


def test_candidates_are_the_points_through_which_the_evidence_comes(cat):
    why = ds.explain(without_norms(), cat)
    lower, upper = why.reached
    for name in (lower, upper):
        chosen = candidates(why, name)
        matter = why.layers[name].points != 0
        assert not (matter & ~chosen).any()
        assert matter.sum() > 0.4 * chosen.sum()  # a ReLU may silence some, and some lie beyond the map
    assert candidates(why, upper).sum() == 9
    assert 9 < candidates(why, lower).sum() <= 9 * 36


def test_curves_begin_and_end_where_nothing_and_everything_is_off(packaged, why):
    curves = faithfulness(packaged, why)
    assert (curves.layer, curves.candidates) == (list(why.reached)[-1], 9)
    whole = torch.tensor(why.value).sigmoid().item()
    batch, (placement,) = packaged.prepare([why.photo])
    off = (~candidates(why, curves.layer)).float().flatten(0, 1)[None]
    number = list(why.layers).index(curves.layer)
    with torch.inference_mode(), intercepting(
        lambda n, call: call._replace(mask=off) if n == number else call
    ):  # fmt: skip
        nothing = packaged.repredict(batch, placement, why.detection)["logits"].sigmoid().item()
    for order in ORDERS:
        deletion, insertion = curves.score["deletion"][order], curves.score["insertion"][order]
        assert len(deletion) == len(SHARES)
        np.testing.assert_allclose([deletion[0], insertion[-1]], whole, rtol=1e-4)
        np.testing.assert_allclose([deletion[-1], insertion[0]], nothing, rtol=1e-4)
        assert curves.iou["deletion"][order][0] == pytest.approx(1)
        assert curves.iou["deletion"][order][-1] < 1
    assert nothing < whole


def test_the_first_point_off_is_the_one_that_adds_most(packaged, why):
    curves = faithfulness(packaged, why, shares=(0, 1 / 9, 1))
    layer = why.layer()
    row, column = layer.strongest_cell()
    best = int(layer.points[0, :, row, column].argmax())
    batch, (placement,) = packaged.prepare([why.photo])
    on = torch.ones(1, *layer.points.flatten(0, 1).shape)
    on[0, best, row, column] = 0
    with torch.inference_mode(), intercepting(
        lambda n, call: call._replace(mask=on) if n == layer.call else call
    ):  # fmt: skip
        wanted = packaged.repredict(batch, placement, why.detection)["logits"].sigmoid().item()
    assert curves.score["deletion"]["attribution"][1] == pytest.approx(wanted, rel=1e-4)


def test_areas_are_those_of_the_trapezoids(packaged, why):
    curves = faithfulness(packaged, why, shares=(0, 0.5, 1))
    for kind in KINDS:
        for order in ORDERS:
            first, middle, last = curves.score[kind][order]
            wanted = first / 4 + middle / 2 + last / 4
            assert curves.areas()["score"][kind][order] == pytest.approx(wanted)


def test_regions_have_the_points_inside_the_box(cat, thin_rcnn):
    why = ds.explain(thin_rcnn, cat, min_score=0.0)
    name = "backbone.layer3.0.conv2"
    chosen = candidates(why, name)
    x0, y0, x1, y1 = why.box
    inside = why.layers[name].places()[chosen]
    assert 0 < len(inside) < chosen.numel()
    assert (inside >= torch.tensor([y0, x0])).all()
    assert (inside <= torch.tensor([y1, x1])).all()
    curves = faithfulness(thin_rcnn, why, name, shares=(0, 0.5, 1))
    assert curves.score["deletion"]["attribution"][0] == pytest.approx(why.detection["scores"].item(), abs=1e-4)


def test_explanations_of_anything_else_are_told(packaged, why):
    from dataclasses import replace

    with pytest.raises(DeformscopeError, match=r"explained: expected the explanation of a detection"):
        faithfulness(packaged, replace(why, detection={}))
    with pytest.raises(
        DeformscopeError, match=r"layer='heads.stride32.deform': not below|layer='heads.stride8.deform'"
    ):
        other = next(name for name in why.layers if name not in why.reached and name.endswith("deform"))
        candidates(why, other)
