"""Networks of other libraries become detectors that keep to the one interface."""

import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import queries_network
import torch
from torch import nn

import deformscope
from deformscope.analysis import Analysis
from deformscope.attribution.targets import of_detection
from deformscope.detectors import huggingface
from deformscope.errors import DeformscopeError
from deformscope.fields.field import Placement

SMALL = np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)
TALL = np.random.default_rng(1).integers(0, 255, (140, 70, 3), dtype=np.uint8)
NAMES = {0: "cat", 1: "dog", 2: "cow"}


def randomised(model):
    """With large random offsets and weights, which new ones do not have."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets" in name or "attention_weights" in name:
                parameter.normal_(std=0.7)
            if "class_embed" in name or "bbox_embed" in name:
                parameter.normal_(std=0.5)
    return model.eval()


def rt_detr():
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrImageProcessor, RTDetrResNetConfig

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    config = RTDetrConfig(
        backbone_config=RTDetrResNetConfig(**sizes, out_features=["stage2", "stage3", "stage4"]),
        encoder_hidden_dim=32,
        encoder_in_channels=[8, 16, 16],
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        d_model=32,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=32,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_n_points=2,
        num_queries=20,
        num_denoising=0,
        id2label=NAMES,
        anchor_image_size=None,
    )
    torch.manual_seed(0)
    processor = RTDetrImageProcessor(size={"height": 64, "width": 96})
    return randomised(RTDetrForObjectDetection(config)), processor


def deformable_detr():
    from transformers import (
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        DeformableDetrImageProcessor,
        ResNetConfig,
    )

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    config = DeformableDetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=ResNetConfig(**sizes, out_features=["stage2", "stage3", "stage4"]),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=15,
        num_feature_levels=3,
        encoder_n_points=2,
        decoder_n_points=3,
        id2label=NAMES,
        disable_custom_kernels=True,
    )
    torch.manual_seed(0)
    processor = DeformableDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    return randomised(DeformableDetrForObjectDetection(config)), processor


@pytest.fixture(scope="module", params=[rt_detr, deformable_detr])
def saved(request, tmp_path_factory):
    """A random model of transformers, its processor, and the folder that holds both."""
    pytest.importorskip("transformers")
    model, processor = request.param()
    folder = tmp_path_factory.mktemp("hub") / request.param.__name__
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor, folder


def test_a_folder_of_transformers_detects_as_transformers_does(saved):
    model, processor, folder = saved
    detector = deformscope.load(f"hf:{folder}")
    assert detector.class_names == ("cat", "dog", "cow") and detector.name == folder.name
    assert detector.weights_sha256 is not None
    found = detector([SMALL, TALL], min_score=0.2)
    inputs = processor(images=[SMALL, TALL], return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    sizes = torch.tensor([SMALL.shape[:2], TALL.shape[:2]])
    wanted = processor.post_process_object_detection(output, threshold=0.2, target_sizes=sizes)
    for image, (one, other) in enumerate(zip(found, wanted, strict=True)):
        order = other["scores"].argsort(descending=True, stable=True)[:100]
        torch.testing.assert_close(one["scores"], other["scores"][order], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one["boxes"], other["boxes"][order], atol=2e-3, rtol=1e-4)
        assert len(order) > 3
        # The query that is named has this box and this score.
        named = output.pred_boxes[image, one["query"]]
        size = torch.tensor([sizes[image, 1], sizes[image, 0]] * 2)
        corners = torch.cat([named[:, :2] - named[:, 2:] / 2, named[:, :2] + named[:, 2:] / 2], dim=1) * size
        torch.testing.assert_close(one["boxes"], corners, atol=2e-3, rtol=1e-4)
        scores = output.logits[image, one["query"], one["labels"]].sigmoid()
        torch.testing.assert_close(one["scores"], scores, atol=1e-5, rtol=1e-4)


def test_a_batch_of_unequal_photos_is_that_of_the_processor(saved):
    _, processor, folder = saved
    batch, placements = deformscope.load(f"hf:{folder}").prepare([SMALL, TALL])
    wanted = processor(images=[SMALL, TALL], return_tensors="pt")
    torch.testing.assert_close(batch, wanted["pixel_values"])
    for image, (photo, place) in enumerate(zip([SMALL, TALL], placements, strict=True)):
        assert place.size == photo.shape[:2]
        mask = wanted["pixel_mask"][image] if "pixel_mask" in wanted else torch.ones(batch.shape[-2:])
        valid = mask[:, 0].sum(), mask[0].sum()
        assert place.scale == pytest.approx([float(v) / s for v, s in zip(valid, place.size, strict=True)])


def test_an_analysis_of_it_has_attention_and_is_saved_whole(saved, tmp_path):
    *_, folder = saved
    analysis = deformscope.analyse(deformscope.load(f"hf:{folder}"), SMALL)
    assert len(analysis.decoder) == 2 and not len(analysis.fields)
    analysis.save(tmp_path / "one.safetensors")
    again = Analysis.load(tmp_path / "one.safetensors")
    assert list(again.fields.attention) == list(analysis.fields.attention)
    for name, field in analysis.fields.attention.items():
        other = again.fields.attention[name]
        for part in ("points", "weights", "level_reference", "level"):
            assert torch.equal(getattr(other, part), getattr(field, part))
        for part in ("level_sizes", "input_size", "placements", "name"):
            assert getattr(other, part) == getattr(field, part)
    assert torch.equal(again.detection["query"], analysis.detection["query"])
    assert again.queries() == analysis.queries() == analysis.detection["query"].tolist()


def test_detections_of_transformers_are_explained_by_their_number(saved):
    model, _, folder = saved
    detector = deformscope.load(f"hf:{folder}")
    found = detector(SMALL, min_score=0.2)[0]
    batch, _ = detector.prepare([SMALL])
    mask = {"pixel_mask": torch.ones(1, *batch.shape[-2:], dtype=torch.int64)} if folder.name != "rt_detr" else {}
    number = len(found["scores"]) - 1
    query, label = int(found["query"][number]), int(found["labels"][number])
    why = deformscope.explain(detector, SMALL, number, min_score=0.2)
    leaf = batch.clone().requires_grad_()
    output = model(pixel_values=leaf, **mask)
    logit = output.logits[0, query, label]
    assert why.value == pytest.approx(logit.item(), abs=1e-4)
    assert float(why.detection["scores"][0]) == pytest.approx(logit.sigmoid().item(), abs=1e-5)
    (slope,) = torch.autograd.grad(logit, leaf, retain_graph=True)
    torch.testing.assert_close(why.receptive_field.gradient, slope[0].abs().sum(0), atol=1e-5, rtol=1e-3)
    last = list(why.reached_attention.values())[-1]
    assert last.by_query().nonzero()[:, 0].tolist() == [query] and last.strongest_query() == query
    # The box's sides, and the same detection again, without its number.
    cx, cy, w, h = output.pred_boxes[0, query].tolist()
    for side, value in (("left", (cx - w / 2) * 130), ("bottom", (cy + h / 2) * 90)):
        one = deformscope.explain(detector, SMALL, why.detection, side)
        assert one.value == pytest.approx(value, abs=1e-3) and int(one.detection["query"][0]) == query
    with pytest.raises(DeformscopeError, match="of='iou': expected one of 'score', 'left'"):
        deformscope.explain(detector, SMALL, of="iou", min_score=0.2)
    # Traces are no part of what a detector gives to others.
    assert set(found) == {"boxes", "scores", "labels", "query"}


def test_the_log_odds_of_a_query_are_those_of_its_score_or_left_out():
    logits = torch.tensor([[[2.0, -1.0, 0.5, 1.0], [0.0, 3.0, -2.0, 1.5], [-4.0, 1.0, 0.0, 9.0]]], requires_grad=True)
    output = {"logits": logits, "pred_boxes": torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.5, 0.5], [0.7] * 4]])}
    boxes, size = torch.tensor([[0.0, 25.0, 100.0, 75.0], [80.0, 30.0, 120.0, 70.0]]), (100, 200)
    softmax = logits[0].detach().softmax(-1)
    found = {"boxes": boxes, "labels": torch.tensor([1, 0]), "scores": torch.stack([softmax[1, 1], softmax[0, 0]])}
    traced = huggingface.with_query(found, output, 0, size, classes=3)  # the fourth is for nothing
    assert traced["query"].tolist() == [1, 0]
    torch.testing.assert_close(traced["logits"], (found["scores"] / (1 - found["scores"])).log())
    torch.testing.assert_close(traced["unclipped"], boxes, atol=1e-4, rtol=0)
    assert traced["logits"].requires_grad
    again = huggingface.predicted_again(traced, output | {"logits": logits + 1}, size, classes=3)
    torch.testing.assert_close(again["scores"], found["scores"])
    # With four classes scores would be sigmoids, and these are none.
    other = huggingface.with_query(found, output, 0, size, classes=4)
    assert "logits" not in other and other["query"].tolist() == [1, 0]
    sigmoid = found | {"scores": torch.tensor([3.0, 2.0]).sigmoid()}
    assert huggingface.with_query(sigmoid, output, 0, size, classes=4)["logits"].tolist() == [3.0, 2.0]
    assert "logits" not in huggingface.with_query(sigmoid | {"boxes": boxes + 4}, output, 0, size, classes=4)
    with pytest.raises(
        DeformscopeError, match="of='left': this detector doesn't tell what gave its detections"
    ) as error:
        of_detection(other, 0, "left")
    assert "\n" not in str(error.value)


def test_the_five_lines_of_the_page_for_transformers_run(saved, tmp_path, monkeypatch, cat):
    *_, folder = saved
    page = (Path(__file__).parents[2] / "docs" / "transformers.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    assert code.count("hf:PekingU/rtdetr_r18vd") == 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(cat.read_bytes())
    exec(code.replace("hf:PekingU/rtdetr_r18vd", f"hf:{folder}"), {})
    assert (tmp_path / "queries.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("hf:/nowhere/at/all", "hf:/nowhere/at/all': no such folder"),
        ("hf:", "no such folder"),
        ("python:own", "expected python:package.module:factory"),
        ("python:own:a b", "expected python:package.module:factory"),
        ("python:no_such_module_here:make", "No module named 'no_such_module_here'"),
        ("python:queries_network:nothing", "has no attribute 'nothing'"),
        ("python:queries_network:NAMES", "NAMES is of type tuple, not a function"),
        ("python:queries_network:cells", "TypeError: cells\\(\\) missing 2 required"),
        ("python:builtins:dict", "returned dict; expected a torch.nn.Module"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(spec, said):
    with pytest.raises(DeformscopeError, match=said) as error:
        deformscope.load(spec)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_detector_is_said_in_one_line(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(DeformscopeError, match="expected an object detector of transformers") as error:
        deformscope.load(f"hf:{tmp_path}")
    assert "\n" not in str(error.value)


def test_a_factory_is_found_in_the_current_folder_and_its_failures_name_their_line(tmp_path, monkeypatch):
    (tmp_path / "mine_in_this_folder.py").write_text(
        textwrap.dedent("""
        from torch import nn
        def plain():
            return nn.Conv2d(3, 4, 3)
        def fails():
            raise KeyError("no weights")
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    detector = deformscope.load("python:mine_in_this_folder:plain")
    assert isinstance(detector.net, nn.Conv2d) and not detector.training
    assert detector([SMALL, TALL])[0]["boxes"].shape == (0, 4)
    with pytest.raises(DeformscopeError, match=r"KeyError: 'no weights' \(mine_in_this_folder.py, line 6\)"):
        deformscope.load("python:mine_in_this_folder:fails")


def test_boxes_in_network_px_arrive_in_photo_px():
    def decode(output, batch):
        return [{"boxes": [[8.0, 4.0, 40.0, 500.0]], "scores": [0.7]} for _ in batch]

    def prepare(photos):
        return torch.zeros(1, 3, 60, 80), [Placement((90, 130), (0.5, 0.25), (2.0, 0.0))]

    detector = deformscope.adapt(nn.Identity(), prepare=prepare, decode=decode, class_names=("cat",))
    batch, placements = detector.prepare([SMALL])
    found = detector.detect(batch, placements)[0]["boxes"]
    np.testing.assert_allclose(found, [[32.0, 4.0, 130.0, 90.0]])


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"prepare": lambda photos: torch.zeros(3, 60, 80)}, "prepare: a batch of shape"),
        ({"prepare": lambda photos: 1 / 0}, "prepare failed: ZeroDivisionError"),
        ({"prepare": lambda photos: (torch.zeros(1, 3, 6, 8), [1])}, "expected 1 of deformscope.Placement"),
        ({"decode": lambda output, batch: []}, "decode: 0 results for 1 photos"),
        ({"decode": lambda output, batch: [{"boxes": [[1, 2, 3]], "scores": [1]}]}, "boxes of shape"),
        ({"decode": lambda output, batch: [{"boxes": [[1, 2, 3, 4]]}]}, "expected boxes, scores and"),
        ({"decode": lambda output, batch: [{"boxes": [[1, 2, 3, 4]], "scores": [1, 2]}]}, "scores of shape"),
        ({"decode": lambda output, batch: output.nothing}, "decode failed: AttributeError"),
        ({"network": nn.Linear(3, 4)}, "the network failed: RuntimeError"),
    ],
)
def test_what_does_not_fit_names_the_part_that_does_not(parts, said):
    parts = {"network": nn.Conv2d(3, 4, 3)} | parts
    with pytest.raises(DeformscopeError, match=said) as error:
        deformscope.adapt(parts.pop("network"), name="mine", **parts)(SMALL)
    assert str(error.value).startswith("mine: ") and "\n" not in str(error.value)


def test_what_it_cannot_do_is_said():
    detector = queries_network.detector()
    without_decode = deformscope.adapt(detector.net, prepare=queries_network.prepare, fit="stretch")
    for call in (
        lambda: detector.prepare([SMALL], 64),
        lambda: deformscope.explain(without_decode, SMALL),
        lambda: deformscope.load("python:queries_network:detector", weights="ema"),
        lambda: deformscope.load("python:queries_network:detector", shorter_side=64),
    ):
        with pytest.raises(DeformscopeError, match=r"chooses the size|cannot be explained|only files have"):
            call()


def test_queries_without_names_are_those_of_the_nearest_reference():
    analysis = deformscope.analyse(queries_network.detector(), SMALL)
    last = list(analysis.decoder.values())[-1]
    boxes = last.reference[0, [4, 1]]
    place = last.placement()
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
    photo = place.to_photo(corners.view(-1, 2, 2)).flip(-1).reshape(-1, 4)
    assert last.nearest(photo).tolist() == [4, 1]
    nameless = {key: value for key, value in analysis.detection.items() if key != "query"} | {"boxes": photo}
    assert Analysis(SMALL, analysis.fields, nameless).queries() == [4, 1]


def test_a_network_whose_input_has_another_shape_says_how_it_is_made_of_photos():
    def square(photos):
        return torch.zeros(len(photos), 3, 64, 64)

    def decode(output, batch):
        return [{"boxes": torch.tensor([[0.0, 0, 64, 64]]), "scores": torch.ones(1)}] * len(batch)

    photo = np.zeros((60, 120, 3), np.uint8)
    detector = deformscope.adapt(nn.Conv2d(3, 3, 1), prepare=square, decode=decode)
    with pytest.raises(deformscope.DeformscopeError, match=r'photo of 60×120 px .* has 64×64.*fit="stretch"'):
        detector(photo)
    for fit, box in (("stretch", [0, 0, 120, 60]), ("crop", [30, 0, 90, 60]), ("pad", [0, 0, 120, 60])):
        detector = deformscope.adapt(nn.Conv2d(3, 3, 1), prepare=square, decode=decode, fit=fit)
        assert detector(photo)[0]["boxes"].tolist() == [pytest.approx(box)]
    placed = deformscope.adapt(nn.Conv2d(3, 3, 1), fit="crop")
    with pytest.raises(deformscope.DeformscopeError, match="fit='crop': it returns placements"):
        placed(photo)
    with pytest.raises(deformscope.DeformscopeError, match=r"fit='crop': how packaged places photos .* is known"):
        deformscope.load("packaged", fit="crop")
