"""Each detection knows what it was before it was clipped and ranked, and which cell or region it came from."""

import pytest
import torch
from torch import nn
from torchvision.ops import clip_boxes_to_image

import deformscope as ds
from deformscope.detectors.dense.config import DenseRCNNConfig
from deformscope.detectors.dense.dense_rcnn import DenseRCNN
from deformscope.detectors.detector import TRACES
from deformscope.photo import read


def dense_rcnn():
    torch.manual_seed(0)
    config = DenseRCNNConfig(("cat", "dog"), channels=16, proposals=12, width=32, shorter_side=64, longer_side=96)
    detector = DenseRCNN(config).eval()
    for head in detector.heads.values():
        nn.init.normal_(head.cls.weight, std=0.5)
    return detector


@pytest.fixture(params=["packaged", "rcnn", "masked", "dense_rcnn"])
def seen(request, cat, thin, random_rcnn):
    """A detector, its batch of the cat, how that lies there, and what was found."""
    kinds = {
        "packaged": lambda: ds.load("packaged"),
        "rcnn": lambda: random_rcnn(thin()),
        "masked": lambda: random_rcnn(thin(mask=True)),
        "dense_rcnn": dense_rcnn,
    }
    detector = kinds[request.param]()
    if request.param in ("rcnn", "masked"):
        detector.config = detector.config.resized_to(128, 192)
    batch, placements = detector.prepare([read(cat)])
    batch.requires_grad_()
    found = detector.detect(batch, placements, min_score=0.02, max_detections=20)[0]
    assert len(found["boxes"]) > 1
    return detector, batch, placements[0], found


def test_traces_are_what_scores_and_boxes_are_made_of(seen):
    _, _, placement, found = seen
    confidence = found["logits"].sigmoid()
    if "iou_logits" in found:
        confidence = (confidence * found["iou_logits"].sigmoid()).sqrt()
    torch.testing.assert_close(confidence, found["scores"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        clip_boxes_to_image(found["unclipped"], placement.size), found["boxes"], rtol=1e-4, atol=0.02
    )


def test_traces_lead_back_to_the_photo(seen):
    _, batch, _, found = seen
    for name in ("logits", "unclipped", *(["iou_logits"] if "iou_logits" in found else [])):
        (gradient,) = torch.autograd.grad(found[name][0].sum(), batch, retain_graph=True)
        assert gradient.abs().sum() > 0
    assert not found["index" if "index" in found else "region"].requires_grad


def test_the_same_cells_and_regions_say_the_same_again(seen):
    detector, batch, placement, found = seen
    rows = {key: value[:5] for key, value in found.items()}
    again = detector.repredict(batch, placement, rows)
    assert set(again) == {"scores"} | set(TRACES) & set(found) - {"index", "region"}
    if isinstance(detector, DenseRCNN):  # it looks into the detected boxes, not into the proposals that they came from
        assert again["unclipped"].shape == (5, 4)
        return
    for name, value in again.items():
        torch.testing.assert_close(value, rows[name], rtol=1e-4, atol=1e-4)


def test_users_get_torchvisions_keys_only(cat):
    found = ds.load("packaged")(cat)[0]
    assert set(found) == {"boxes", "labels", "scores"}
