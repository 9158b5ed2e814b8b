"""Detections are explained as they were found, by number or place; what cannot be explained is told in a line."""

import numpy as np
import pytest
import torch
import torchvision
from known_network import Known, one_output
from torch import nn

import deformscope as ds
from deformscope import DeformscopeError
from deformscope.detectors.deform import set_offset_mode
from deformscope.photo import read


@pytest.fixture(scope="module")
def packaged():
    return ds.load("packaged")


@pytest.fixture(scope="module")
def why(packaged, cat):
    return ds.explain(packaged, cat)


def test_the_first_detection_is_the_detectors_first(packaged, cat, why):
    found = packaged(cat)[0]
    torch.testing.assert_close(why.detection["boxes"], found["boxes"][:1], rtol=1e-4, atol=0.05)
    torch.testing.assert_close(why.detection["scores"], found["scores"][:1], rtol=1e-4, atol=1e-5)
    assert (why.label, why.of, why.detector) == ("cat", "score", "packaged")
    assert why.value == pytest.approx(why.detection["logits"].item())
    assert why.photo.shape == (300, 451, 3)
    assert list(why.layers) == [
        f"heads.stride{stride}.{layer}" for stride in (8, 16, 32) for layer in ("before.0", "deform")
    ]


def test_only_the_level_that_found_it_matters_and_its_cell_most(packaged, why):
    assert len(why.reached) == 2
    (level,) = {name.split(".")[1] for name in why.reached}
    layer = why.layer()
    assert layer.field.name == f"heads.{level}.deform"
    # The index of the prediction among all levels' cells, without asking the detector for its order.
    before = sum(
        one.points.shape[-2] * one.points.shape[-1]
        for name, one in why.layers.items()
        if name.endswith("deform") and int(name.split(".")[1][6:]) < int(level[6:])
    )
    width = layer.points.shape[-1]
    assert divmod(int(why.detection["index"]) - before, width) == layer.strongest_cell()


@pytest.mark.filterwarnings("error::deformscope.errors.DeformscopeWarning")
def test_a_model_that_was_captured_before_is_explained_by_the_same_names():
    layer = torchvision.ops.DeformConv2d(3, 4, 3, padding=1)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset, self.deform = nn.Conv2d(3, 18, 3, padding=1), layer

        def forward(self, x):
            return self.deform(x, self.offset(x)).sum(dim=(2, 3))

    model, image = Plain(), torch.rand(1, 3, 8, 10)
    with ds.capture(model) as fields:
        model(image)
    why = ds.explain(model, image, of=lambda output: output[0, 1])
    assert list(why.layers) == list(fields) == ["deform"]
    assert why.layer("deform").field.source == fields["deform"].source
    with ds.capture(model) as again:
        model(image)
    assert list(again) == ["deform"] and again["deform"].source == fields["deform"].source


@pytest.mark.parametrize(("of", "column"), [("left", 0), ("top", 1), ("right", 2), ("bottom", 3)])
def test_sides_are_the_boxs_in_photo_px(packaged, cat, of, column):
    why = ds.explain(packaged, cat, of=of)
    assert why.value == pytest.approx(why.detection["unclipped"][0, column].item())
    assert why.receptive_field.gradient.sum() > 0


def test_the_iou_branch_and_functions_are_explained(packaged, cat):
    why = ds.explain(packaged, cat, of="iou")
    assert why.value == pytest.approx(why.detection["iou_logits"].item())
    same = ds.explain(packaged, cat, of=lambda found: found["iou_logits"][0])
    torch.testing.assert_close(same.layer().points, why.layer().points)
    assert same.of == "output"


def test_a_place_chooses_the_best_box_around_it(packaged, cat):
    found = packaged(cat)[0]
    centre = [float(v) for v in (found["boxes"][1, [1, 0]] + found["boxes"][1, [3, 2]]) / 2]
    inside = [
        row for row, (x0, y0, x1, y1) in enumerate(found["boxes"].tolist())
        if x0 <= centre[1] <= x1 and y0 <= centre[0] <= y1
    ]  # fmt: skip
    why = ds.explain(packaged, cat, at=(centre[0], centre[1]))
    torch.testing.assert_close(why.detection["boxes"][0], found["boxes"][inside[0]], rtol=1e-4, atol=0.05)


def test_the_same_prediction_of_the_same_detector_without_offsets(cat, why):
    plain = ds.load("packaged")
    set_offset_mode(plain, "none")
    other = ds.explain(plain, cat, why.detection)
    assert not other.layers  # no deformable convolution ran
    assert torch.equal(other.detection["index"], why.detection["index"])
    assert other.value != pytest.approx(why.value, abs=1e-3)
    assert other.receptive_field.radius(0.5) != pytest.approx(why.receptive_field.radius(0.5), rel=1e-3)
    again = ds.explain(ds.load("packaged"), cat, why.detection)
    assert again.value == pytest.approx(why.value, abs=1e-4)
    torch.testing.assert_close(again.layer().points, why.layer().points, rtol=1e-3, atol=1e-5)


def test_heat_lies_where_the_points_are(why):
    heat, signed = why.heatmap(), why.heatmap(signed=True)
    assert heat.shape == signed.shape == (300, 451)
    assert (heat.min(), heat.max()) == (0, 1)
    assert np.abs(signed).max() == 1
    assert signed.min() < 0
    layer = why.layer()
    cell = layer.strongest_cell()
    points = layer.points[0, :, cell[0], cell[1]]
    y, x = layer.places()[0, int(points.argmax()), cell[0], cell[1]].tolist()
    assert heat[int(y), int(x)] > 0.3


def test_rcnn_detections_are_explained_through_the_box_head(cat, thin_rcnn):
    detector = thin_rcnn
    why = ds.explain(detector, cat, min_score=0.0)
    assert len(why.layers) == 13
    assert list(why.reached) == list(why.layers)
    assert why.layers["backbone.layer2.0.conv2"].points.shape[:2] == (4, 9)
    assert torch.logit(why.detection["scores"]).item() == pytest.approx(why.value, abs=1e-4)
    with pytest.raises(DeformscopeError, match=r"of='iou': expected one of 'score', 'left', 'top', 'right', 'bottom'"):
        ds.explain(detector, cat, of="iou", min_score=0.0)


def test_torchvisions_detectors_are_explained_by_a_function(cat):
    torch.manual_seed(0)
    detector = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, box_score_thresh=0.0
    ).eval()
    image = torch.from_numpy(read(cat)).permute(2, 0, 1) / 255
    why = ds.explain(detector, [image], of=lambda found: found[0]["scores"][0])
    assert why.receptive_field.gradient.shape == image.shape[1:]
    assert why.receptive_field.gradient.sum() > 0
    assert not why.layers


ERRORS = {
    "number": (lambda d, cat: ds.explain(d, cat, 100), r"detection=100: expected 0 to \d+, the detections"),
    "place": (lambda d, cat: ds.explain(d, cat, at=(1.0, 999.0)), r"at=\(y=1, x=999\): outside the photo"),
    "no box": (lambda d, cat: ds.explain(d, cat, at=(0.5, 0.5), min_score=0.6), r"in none of the \d+ detected boxes"),
    "nothing": (
        lambda d, cat: ds.explain(d, cat, min_score=0.999),
        r"min_score=0.999: nothing on this photo scores so high",
    ),
    "output": (lambda d, cat: ds.explain(d, cat, of="size"), r"of='size': expected one of 'score', 'iou', 'left'"),
    "layer": (lambda d, cat: ds.explain(d, cat, layers=["head9"]), r"no deformable call named 'head9'; nearest:"),
    "no number": (lambda d, cat: ds.explain(d, cat, of=lambda f: f["boxes"]), r"gave a tensor of shape \(\d+, 4\)"),
    "no tensor": (lambda d, cat: ds.explain(d, cat, of=lambda f: 3), r"gave int; expected one number"),
    "detached": (
        lambda d, cat: ds.explain(d, cat, of=lambda f: f["logits"][0].detach()),
        r"has no gradient path back to the photo",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_explained_is_told(packaged, cat, case):
    call, message = ERRORS[case]
    with pytest.raises(DeformscopeError, match=message):
        call(packaged, cat)


def test_unknown_layers_of_an_explanation_are_told(why):
    with pytest.raises(DeformscopeError, match=r"layer='x': expected one of the explained layers: 'heads.stride8"):
        why.heatmap("x")


class Inference(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Known(torchvision.ops.deform_conv2d).float()

    def forward(self, images):
        with torch.inference_mode():
            return self.inner(images)


def test_models_without_a_way_back_are_told():
    image = torch.rand(1, 3, 15, 19)
    with pytest.raises(
        DeformscopeError, match=r"no gradient path back to the photo; it was computed in inference_mode"
    ):
        ds.explain(Inference(), image, of=one_output)
    with torch.inference_mode():
        frozen = Known(torchvision.ops.deform_conv2d).float()
    with pytest.raises(DeformscopeError, match=r"model Known: has no gradient path; its weights or its input"):
        ds.explain(frozen, image, of=one_output)
    with pytest.raises(DeformscopeError, match=r"of='score': Known is no detector of deformscope"):
        ds.explain(Known(torchvision.ops.deform_conv2d), image)
    with pytest.raises(DeformscopeError, match=r"photo of type Tensor: Conv2d gets it as its input"):
        ds.explain(nn.Conv2d(3, 1, 1), torch.rand(2, 3, 5, 5), of=lambda out: out.sum())
    with pytest.raises(DeformscopeError, match=r"photo of type Tensor"):
        ds.explain(nn.Conv2d(3, 1, 1), torch.zeros(1, 3, 5, 5, dtype=torch.uint8), of=lambda out: out.sum())


@pytest.mark.slow
def test_all_layers_cost_at_most_three_forward_passes(packaged, cat):
    from time import process_time

    def cost(call):
        start = process_time()
        call()
        return process_time() - start

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs = [(cost(lambda: packaged(cat)), cost(lambda: ds.explain(packaged, cat))) for _ in range(12)]
    finally:
        torch.set_num_threads(threads)
    forward, explained = np.median(pairs, axis=0)
    assert explained < 3 * forward
