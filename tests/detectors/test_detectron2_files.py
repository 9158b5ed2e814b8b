"""Detectron2: its key names on synthetic files, and each rule in which it differs from MMDetection by itself."""

import pickle
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from deformscope.detectors import deform, preparation
from deformscope.detectors.checkpoints.detectron2 import to_own, to_theirs
from deformscope.detectors.rcnn import boxes, roi
from deformscope.detectors.rcnn.config import DETECTRON2, MMDETECTION
from deformscope.detectors.rcnn.roi import BoxHead
from deformscope.detectors.rcnn.rpn import RPN
from deformscope.detectors.zoo import load
from deformscope.errors import DeformscopeError
from deformscope.fields.field import Placement

KEYS = [
    "backbone.bottom_up.stem.conv1.weight",
    "backbone.bottom_up.stem.conv1.norm.running_mean",
    "backbone.bottom_up.res2.0.shortcut.weight",
    "backbone.bottom_up.res2.0.shortcut.norm.bias",
    "backbone.bottom_up.res3.3.conv2.norm.running_var",
    "backbone.bottom_up.res3.0.conv2_offset.weight",
    "backbone.bottom_up.res5.2.conv2_offset.bias",
    "backbone.bottom_up.res4.5.conv3.weight",
    "backbone.fpn_lateral2.weight",
    "backbone.fpn_output5.bias",
    "proposal_generator.rpn_head.conv.weight",
    "proposal_generator.rpn_head.objectness_logits.bias",
    "proposal_generator.rpn_head.anchor_deltas.weight",
    "roi_heads.box_head.fc1.weight",
    "roi_heads.box_head.fc2.bias",
    "roi_heads.box_predictor.cls_score.weight",
    "roi_heads.box_predictor.bbox_pred.bias",
    "roi_heads.mask_head.mask_fcn1.weight",
    "roi_heads.mask_head.mask_fcn4.bias",
    "roi_heads.mask_head.deconv.weight",
    "roi_heads.mask_head.predictor.bias",
]


def arrays_of(detector) -> OrderedDict:
    state = {to_theirs(k): v.numpy() for k, v in detector.state_dict().items() if not k.endswith("num_batches_tracked")}
    return OrderedDict(state)


def write(path, model, protocol=2, **beside):
    extra = {
        "pixel_mean": np.ones((3, 1, 1), np.float32),
        "proposal_generator.anchor_generator.cell_anchors.0": np.ones(3),
    }
    with path.open("wb") as file:
        pickle.dump({"model": model | extra, "__author__": "Detectron2 Model Zoo", **beside}, file, protocol=protocol)


@pytest.fixture
def d2(thin):
    return lambda deformable="dconv_c3-c5", **settings: thin(deformable, mask=True, dialect=DETECTRON2, **settings)


def test_every_published_kind_of_key_has_its_place(d2, random_rcnn):
    own = random_rcnn(d2()).state_dict().keys()
    assert {to_own(key) for key in KEYS} <= own
    assert [to_theirs(to_own(key)) for key in KEYS] == KEYS
    assert to_own("backbone.bottom_up.res3.0.conv2_offset.weight") == "backbone.layer2.0.conv2.conv_offset.weight"
    assert to_own("backbone.bottom_up.res3.0.conv2.norm.weight") == "backbone.layer2.0.bn2.weight"
    assert len({to_theirs(key) for key in own}) == len(own)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_of_arrays_becomes_the_detector_it_was(tmp_path, d2, random_rcnn, protocol):
    detector = random_rcnn(d2())
    write(tmp_path / "model_final.pkl", arrays_of(detector), protocol)
    loaded = load(tmp_path / "model_final.pkl", shorter_side=64, longer_side=96)
    assert loaded.config.dialect.name == "detectron2" and loaded.config.mask
    for key, value in arrays_of(detector).items():
        assert torch.equal(loaded.state_dict()[to_own(key)], torch.from_numpy(value)), key
    photo = np.random.default_rng(0).integers(0, 256, (60, 84, 3), dtype=np.uint8)
    assert loaded([photo])[0]["boxes"].shape[1] == 4


def test_a_trainers_torch_file_is_read_too(tmp_path, d2, random_rcnn):
    detector = random_rcnn(d2("mdconv_c4-c5_group4", depth=101))
    model = {key: torch.from_numpy(value) for key, value in arrays_of(detector).items()}
    torch.save({"model": model, "iteration": 7, "optimizer": {"state": {}}}, tmp_path / "model_0007.pth")
    config = load(tmp_path / "model_0007.pth").config
    assert (str(config.deformable), config.depth, config.dialect) == ("mdconv_c4-c5_group4", 101, DETECTRON2)


def test_missing_keys_are_named_as_detectron2_has_them(tmp_path, d2, random_rcnn):
    model = arrays_of(random_rcnn(d2()))
    del model["backbone.bottom_up.res3.1.conv2_offset.bias"]
    write(tmp_path / "a.pkl", model)
    with pytest.raises(DeformscopeError, match=r"1 missing: backbone\.bottom_up\.res3\.1\.conv2_offset\.bias"):
        load(tmp_path / "a.pkl")


def test_strides_lie_in_the_first_1x1_so_every_deformable_convolution_has_stride_1(d2, random_rcnn):
    detector = random_rcnn(d2())
    layers = [m for m in detector.modules() if isinstance(m, deform.DeformConv)]
    assert len(layers) == 13
    assert {m.stride for m in layers} == {m.conv_offset.stride for m in layers} == {(1, 1)}
    for stage in ("layer2", "layer3", "layer4"):
        block = detector.backbone.get_submodule(stage)[0]
        assert block.conv1.stride == (2, 2) == block.downsample[0].stride
    # The paper's own network has them in the 3×3.
    other = random_rcnn(replace(d2(), dialect=MMDETECTION)).backbone
    assert other.layer2[0].conv2.stride == (2, 2) and other.layer2[0].conv1.stride == (1, 1)


def test_norms_are_frozen_whole(d2, random_rcnn):
    backbone = random_rcnn(d2()).train().backbone
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training or m.weight.requires_grad or m.bias.requires_grad for m in norms)
    assert backbone.layer2[0].conv1.weight.requires_grad and not backbone.conv1.weight.requires_grad


def test_photos_go_in_as_blue_green_red_minus_the_mean_undivided(d2, random_rcnn):
    detector = random_rcnn(d2().resized_to(48, 96))
    photo = np.empty((48, 70, 3), np.uint8)
    photo[...] = (200, 100, 50)  # red, green, blue; already of the right size
    batch, (placement,) = detector.prepare([photo])
    assert batch.shape == (1, 3, 64, 96) and placement.scale == (1.0, 1.0)
    expected = torch.tensor([50 - 103.53, 100 - 116.28, 200 - 123.675])
    assert torch.allclose(batch[0, :, :48, :70], expected[:, None, None].expand(-1, 48, 70), atol=1e-5)
    assert batch[0, :, 48:].abs().max() == 0 == batch[0, :, :, 70:].abs().max()


def test_resizing_is_pillows(d2, random_rcnn):
    detector = random_rcnn(d2().resized_to(37, 90))
    photo = np.random.default_rng(0).integers(0, 256, (81, 103, 3), dtype=np.uint8)
    batch, (placement,) = detector.prepare([photo])
    height, width = placement.network_size
    resized = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR))
    back = batch[0, :, :height, :width] + torch.tensor(DETECTRON2.preparation.mean)[:, None, None]
    assert torch.allclose(back.flip(0).permute(1, 2, 0), torch.from_numpy(resized.copy()).float(), atol=1e-3)


def size_by_the_letter(h: int, w: int, size: int = 800, longest: int = 1333) -> tuple[int, int]:
    """Shorter side first, then the longer one, as its ResizeShortestEdge puts it."""
    scale = size * 1.0 / min(h, w)
    new_h, new_w = (size, scale * w) if h < w else (scale * h, size)
    if max(new_h, new_w) > longest:
        scale = longest * 1.0 / max(new_h, new_w)
        new_h, new_w = new_h * scale, new_w * scale
    return int(new_h + 0.5), int(new_w + 0.5)


def test_sizes_are_rounded_after_scaling_twice():
    random = np.random.default_rng(1)
    for h, w in [
        (480, 640),
        (640, 480),
        (427, 640),
        (500, 500),
        (100, 900),
        *random.integers(20, 3000, (300, 2)).tolist(),
    ]:
        assert preparation.target_size((h, w), DETECTRON2.preparation) == size_by_the_letter(h, w)


def test_shrinking_deltas_are_not_clamped():
    box = torch.tensor([[0.0, 0.0, 100.0, 50.0]])
    deltas = torch.tensor([[0.0, 0.0, -6.0, 6.0]])
    free = boxes.decode(box, deltas, (1.0,) * 4, DETECTRON2.clamp_shrink)[0, 0]
    held = boxes.decode(box, deltas, (1.0,) * 4, MMDETECTION.clamp_shrink)[0, 0]
    size = lambda b: (b[2:] - b[:2]).tolist()  # noqa: E731
    assert size(free) == pytest.approx([100 * np.exp(-6), 50 * 62.5], rel=1e-4)
    assert size(held) == pytest.approx([100 / 62.5, 50 * 62.5], rel=1e-4)


def test_proposals_are_ranked_by_logits_where_probabilities_run_into_ties(thin):
    logits = [torch.full((1, 3, 1, 1), -20.0) for _ in range(5)]
    logits[0][0, :, 0, 0] = torch.tensor([30.0, 40.0, 35.0])
    deltas = [torch.zeros(1, 12, 1, 1) for _ in range(5)]
    placement = [Placement((600, 600))]
    ranked = RPN(thin(dialect=DETECTRON2)).propose(logits, deltas, placement)[0].scores
    assert ranked[:3].tolist() == [40, 35, 30][: len(ranked[:3])]
    assert RPN(thin(dialect=MMDETECTION)).propose(logits, deltas, placement)[0].scores.max() == 1


@pytest.mark.parametrize(("dialect", "before"), [(DETECTRON2, False), (MMDETECTION, True)])
def test_boxes_are_rescaled_after_suppression(thin, monkeypatch, dialect, before):
    seen = []
    monkeypatch.setattr(roi, "suppress", lambda b, *rest: seen.append(b.clone()) or boxes.suppress(b, *rest))
    head = BoxHead(thin(dialect=dialect))
    proposal, logits = torch.tensor([[10.0, 20.0, 40.0, 60.0]]), torch.tensor([[5.0, 0.0, 0.0, 0.0]])
    found, network = head.detections(
        proposal, logits, torch.zeros(1, 12), Placement((200, 300), (0.5, 0.25)), 0.05, 0.5, 9
    )
    assert found["boxes"].tolist() == [[40.0, 40.0, 160.0, 120.0]] and torch.equal(network, proposal)
    assert torch.equal(seen[0], found["boxes"] if before else proposal)


def test_boxes_on_the_photo_are_clipped_to_it_and_empty_ones_dropped(thin):
    logits = torch.tensor([[5.0, 0.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0]])
    proposals = torch.tensor([[10.0, 20.0, 75.0, 60.0], [75.0, 2.0, 75.0, 9.0]])
    placement = Placement((100, 149), (0.5, 0.5))  # network px 50 × 74.5, rounded to 74
    sizes = {}
    for dialect in (DETECTRON2, MMDETECTION):
        found, _ = BoxHead(thin(dialect=dialect)).detections(
            proposals, logits, torch.zeros(2, 12), placement, 0.05, 0.5, 9
        )
        sizes[dialect.name] = found["boxes"].shape[0]
        assert found["boxes"][:, 2].max() <= 149
    assert sizes == {"detectron2": 1, "mmdetection": 2}
