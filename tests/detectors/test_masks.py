"""Masks of the dense detector: against slow literal versions, analytic cases, and what they learn from."""

import math

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

with install_import_hook("deformscope.detectors.dense.masks", "typechecker.check"):
    from deformscope.detectors.dense import masks as room

import deformscope as ds
from deformscope.analysis import analyse
from deformscope.detectors.dense import DenseConfig, DenseDetector, DenseRCNNConfig
from deformscope.detectors.detector import Batch
from deformscope.errors import DeformscopeError
from deformscope.fields.places import Placement
from deformscope.from_dict import from_dict

SIZE = (64, 96)
PHOTO = np.random.default_rng(0).integers(0, 255, (70, 100, 3), dtype=np.uint8)
H, W = 7, 9
BOXES = torch.tensor([[4.0, 2.0, 25.0, 17.0], [0.0, 0.0, 36.0, 28.0], [10.0, 9.0, 13.0, 26.0]]).double()
BOTH = ("unary", "dynamic")


def test_interpolation_keeps_the_cells_where_they_lie():
    maps = torch.arange(12.0).view(1, 1, 3, 4) ** 2
    for factor in (1, 2, 4):
        found = room.upsampled(maps, factor)
        assert found.shape == (1, 1, 3 * factor, 4 * factor)
        assert torch.allclose(found[..., ::factor, ::factor], maps)
    assert room.upsampled(maps, 2)[0, 0, 0, 1] == 0.5 and room.upsampled(maps, 2)[0, 0, 0, -1] == 9


def test_the_dynamic_layer_is_a_small_network_of_each_detection():
    torch.manual_seed(1)
    features, apart = torch.randn(room.FEATURES, 3, 5), torch.randn(2, 3, 5, 2)
    weights = torch.randn(2, room.PARAMETERS)
    found = room.dynamic(features, apart, weights)
    for k in range(2):
        first = weights[k, :80].view(8, 10)
        for y in range(3):
            for x in range(5):
                seen = torch.cat([features[:, y, x], apart[k, y, x]])
                hidden = torch.relu(first @ seen + weights[k, 80:88])
                assert found[k, y, x].item() == pytest.approx(
                    (weights[k, 88:96] @ hidden + weights[k, 96]).item(), 1e-4
                )


def test_masks_in_the_photo_are_where_the_logit_is_positive_inside_the_box():
    _, x = torch.meshgrid(torch.arange(8.0) * 8 + 0.5, torch.arange(12.0) * 8 + 0.5, indexing="ij")
    placement = Placement((128, 96), (0.5, 0.75))  # 64 × 72 px in the network
    # Linear logits are interpolated exactly: positive right of x = 30 px in the network, 40 in the photo.
    found = room.in_photo((x - 30)[None], torch.tensor([[8.0, 20.0, 90.0, 100.5]]), placement, 8)[0]
    rows, columns = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(96) + 0.5, indexing="ij")
    expected = (columns > 40) & (columns < 90) & (rows > 20) & (rows < 100.5)
    assert torch.equal(found, expected)


def test_outside_of_all_boxes_is_background():
    random = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 5, 6, generator=random, dtype=torch.float64)
    boxes = [torch.tensor([[8.0, 0.0, 25.0, 17.0], [30.0, 20.0, 48.0, 40.0]]).double(), torch.zeros(0, 4).double()]
    total, count = 0.0, 0
    for photo in range(2):
        for y in range(5):
            for x in range(6):
                place = (8 * x + 0.5, 8 * y + 0.5)
                if any(a <= place[0] < c and b <= place[1] < d for a, b, c, d in boxes[photo].tolist()):
                    continue
                total += math.log(1 + math.exp(logits[photo, y, x].item()))
                count += 1
    assert room.outside(logits, boxes, 8).item() == pytest.approx(total / count)
    full = [torch.tensor([[0.0, 0.0, 99.0, 99.0]]).double()] * 2
    assert room.outside(logits, full, 8) == 0


def test_masks_that_are_given_are_learned_in_their_boxes_alone():
    random = torch.Generator().manual_seed(0)
    logits, boxes = torch.randn(3, H, W, generator=random, dtype=torch.float64) * 2, BOXES
    masks = torch.rand(3, H, W, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = room.given(logits, masks, boxes)
    for number in range(3):
        x0, y0, x1, y1 = boxes[number].tolist()
        inside = [(y, x) for y in range(H) for x in range(W) if y0 <= 4 * y + 0.5 < y1 and x0 <= 4 * x + 0.5 < x1]
        pairs = [(1 / (1 + math.exp(-logits[number, y, x])), masks[number, y, x].item()) for y, x in inside]
        entropy = -sum(m * math.log(p) + (1 - m) * math.log(1 - p) for p, m in pairs) / len(pairs)
        squares = sum(p * p + m * m for p, m in pairs)
        dice = 1 - 2 * sum(p * m for p, m in pairs) / (squares + 1e-5)
        assert found[number].item() == pytest.approx(entropy + dice, rel=1e-9)
    none = room.given(logits[:1], masks[:1], torch.tensor([[5.0, 5, 6, 6]]).double())
    assert none.item() == 0  # a box between cells


def test_masks_are_pooled_around_the_cells():
    mask = torch.zeros(1, 16, 20, dtype=torch.bool)
    mask[0, 6:10, 2:6] = True  # around the cell (2, 1), at pixel (8, 4)
    expected = torch.zeros(4, 5)
    expected[2, 1] = 1
    assert torch.equal(room.pooled(mask, (4, 5))[0], expected)
    corner = torch.zeros(1, 16, 20, dtype=torch.bool)
    corner[0, :1, :1] = True  # of the four pixels around the first cell
    assert room.pooled(corner, (4, 5))[0, 0, 0] == 0.25
    # An image of 13 × 18 px in a batch of 24 × 32: its last pixels are those of the cells there.
    small = torch.ones(2, 13, 18, dtype=torch.bool)
    found = room.pooled(small, (6, 8))
    assert found.shape == (2, 6, 8) and found[0, :3, :5].min() == found[0, :3, :4].max() == 1
    assert found[0, 3, 0].item() == 0.75 and found[0, 4:].max() == 0 and found[0, :, 5:].max() == 0


def detector(terms=BOTH, **settings) -> DenseDetector:
    torch.manual_seed(3)
    return DenseDetector(
        DenseConfig(("one", "two"), 16, mask_terms=terms, shorter_side=64, longer_side=96, **settings)
    ).eval()


@pytest.mark.parametrize("hidden", [0, 8])
def test_detections_have_masks_in_their_boxes_and_the_boxes_are_those_without_masks(hidden, tmp_path):
    one = detector(shared=True, deform_layers=2, mask_hidden=hidden)
    found, plain = one(PHOTO, min_score=0, max_detections=5)[0], detector((), shared=True, deform_layers=2)
    alone = plain(PHOTO, min_score=0, max_detections=5)[0]
    assert "masks" not in alone and torch.allclose(found["boxes"], alone["boxes"], atol=1e-3)
    assert found["masks"].shape == (5, 70, 100) and found["masks"].dtype == torch.bool
    for mask, (x0, y0, x1, y1) in zip(found["masks"], found["boxes"].tolist(), strict=True):
        rows, columns = mask.nonzero().unbind(1)
        assert not len(rows) or (y0 - 1 <= rows.min() and rows.max() <= y1 and x0 - 1 <= columns.min())
        assert not len(rows) or columns.max() <= x1
    one.save(tmp_path / "one.safetensors", torch.float32)
    again = ds.load(tmp_path / "one.safetensors")
    assert again.config == one.config
    assert torch.equal(again(PHOTO, min_score=0, max_detections=5)[0]["masks"], found["masks"])


def test_an_analysis_keeps_the_masks(tmp_path):
    one = detector()
    with torch.no_grad():
        for head in one.heads.values():
            head.cls.bias.fill_(1.0)
    seen = analyse(one, PHOTO)
    seen.save(tmp_path / "one.safetensors")
    again = ds.Analysis.load(tmp_path / "one.safetensors")
    assert len(again.detection["masks"]) and torch.equal(again.detection["masks"], seen.detection["masks"])


def batch() -> Batch:
    """Two photos, one without objects; the masks of the other's objects do not meet."""
    boxes = torch.tensor([[8.0, 8.0, 60.0, 50.0], [50.0, 20.0, 90.0, 60.0]])
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, :32] = True
    masks[1, 32:, :48] = True
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "masks": masks[:0]}
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(2))
    return Batch([{"boxes": boxes, "labels": torch.tensor([1, 0]), "masks": masks}, none], images)


@pytest.mark.parametrize("hidden", [0, 8])
def test_masks_are_learned_from_those_of_the_targets_and_photos_may_have_no_objects(hidden):
    one, given = detector(mask_hidden=hidden).train(), batch()
    losses = one.losses(given)
    assert {"loss_made", "loss_outside"} < set(losses) and not one.has_masks
    (losses["loss_made"] + losses["loss_outside"]).backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in one.masks.parameters())
    empty = one.losses(Batch(given.targets[1:] * 2, given.images))
    assert empty["loss_made"] == 0 and empty["loss_outside"] > 0
    sum(empty.values()).backward()


def test_every_object_is_learned_from_its_own_mask(monkeypatch):
    seen, given = [], batch()
    monkeypatch.setattr(room, "given", lambda logits, masks, boxes: seen.append((masks, boxes)) or masks.sum())
    detector().train().losses(given)
    (masks, boxes), wanted = seen[0], room.pooled(given.targets[0]["masks"], (16, 24))
    for mask, box in zip(masks, boxes, strict=True):
        (number,) = (given.targets[0]["boxes"] == box).all(dim=1).nonzero()[:, 0].tolist()
        assert torch.equal(mask, wanted[number])
    assert len(masks) == 2


def test_targets_without_masks_are_one_clear_line():
    given = batch()
    with pytest.raises(DeformscopeError, match="targets: no 'masks', from which masks are learned"):
        bare = [{key: one[key] for key in ("boxes", "labels")} for one in given.targets]
        detector().train().losses(Batch(bare, given.images))


def test_terms_that_cannot_be_are_one_clear_line():
    with pytest.raises(DeformscopeError, match=r"mask_terms\[0\]: 'vote'; expected one of 'unary', 'dynamic'"):
        from_dict(DenseConfig, {"class_names": ["one"], "mask_terms": ["vote"]})
    with pytest.raises(DeformscopeError, match=r"mask_terms=\('unary',\): expected one of \(\), "):
        DenseConfig(("one",), mask_terms=("unary",))
    with pytest.raises(DeformscopeError, match="mask_hidden=12: expected a multiple of 8 up to 512"):
        DenseConfig(("one",), mask_terms=BOTH, mask_hidden=12)
    with pytest.raises(DeformscopeError, match="mask_hidden=8: there are no masks"):
        DenseConfig(("one",), mask_hidden=8)
    with pytest.raises(DeformscopeError, match="only of a detector with one stage"):
        DenseRCNNConfig(("one",), mask_terms=BOTH)


def test_a_masks_logit_is_the_unary_term_and_the_dynamic_layer_on_places_in_eight_strides(monkeypatch):
    one, given, seen = detector().train(), batch(), []
    with torch.no_grad():
        predictions = one.predict(one.trunk(given.images))
        index = torch.tensor([5, 96 + 7])  # a cell at stride 8 and one at stride 16
        found = one.masks.logits(predictions, 0, index)
        maps, weights = predictions.masks.maps[0], predictions.masks.weights[0]
        for k, (cell, stride) in enumerate(zip(index.tolist(), (8, 16), strict=True)):
            for y, x in ((0, 0), (3, 10)):
                apart = (torch.tensor([8 * x + 0.5, 8 * y + 0.5]) - predictions.centres[cell]) / (8 * stride)
                dynamic = room.dynamic(maps[1:, y, x, None, None], apart.view(1, 1, 1, 2), weights[cell][None])
                assert found[k, y, x].item() == pytest.approx((maps[0, y, x] + dynamic).item(), abs=1e-5)
    monkeypatch.setattr(room, "outside", lambda logits, boxes, stride: seen.append((logits, stride)) or logits.sum())
    one.masks.losses(predictions, given.targets)
    assert torch.equal(seen[0][0], predictions.masks.maps[:, 0]) and seen[0][1] == 8
