"""Masks out of offsets: planted offsets give the analytic ellipse, and every term begins and learns as it should."""

import math

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

with install_import_hook("deformscope.detectors.dense.masks", "typechecker.check"):
    from deformscope.detectors.dense import masks as room

import deformscope as ds
from deformscope.analysis import analyse
from deformscope.detectors.batch import Batch
from deformscope.detectors.dense import box_losses, mask_losses
from deformscope.detectors.dense.config import DenseConfig, DenseRCNNConfig
from deformscope.detectors.dense.decode import Kernels
from deformscope.detectors.dense.dense import STRIDES, DenseDetector
from deformscope.errors import DeformscopeError
from deformscope.fields.field import Placement
from deformscope.from_dict import from_dict

SIZE = (64, 96)
GRIDS = [(SIZE[0] // stride, SIZE[1] // stride) for stride in STRIDES]


def places(stride: int) -> torch.Tensor:
    """Centres of a level's cells [h·w 2], (x, y) px."""
    y, x = (torch.arange(side // stride) * stride + 0.5 for side in SIZE)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(-1, 2)


def kernels(shift_of, half=(9.0, 5.0)) -> list[Kernels]:
    """One image; ``shift_of`` the places of a level gives s·d_f there."""
    found = []
    for stride in STRIDES:
        where = places(stride)
        found.append(
            Kernels(
                shift_of(where)[None],
                torch.tensor(half).expand(1, len(where), 2),
                torch.zeros(1, len(where), 9, 2),
            )
        )
    return found


def pyramid(channels=16) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    return {
        f"stride{s}": torch.randn(1, channels, *grid, generator=random) for s, grid in zip(STRIDES, GRIDS, strict=True)
    }


def logits_of(branch, seen, level, cell, boxes=None):
    inputs = branch.prepare(pyramid(), seen, [None] * 3)
    before = sum(h * w for h, w in GRIDS[:level])
    index = torch.tensor([before + cell])
    centre = places(STRIDES[level])[cell][None]
    box = torch.zeros(1, 4) if boxes is None else boxes
    return branch.logits(inputs, 0, index, torch.tensor([level]), centre, box)[0], centre[0]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_without_offsets_the_vote_is_the_analytic_ellipse(level):
    branch = room.MaskBranch(["vote"], 16, STRIDES)
    with torch.no_grad():
        branch.log_width.copy_(torch.tensor([0.4, 1.1]))
    found, centre = logits_of(branch, kernels(torch.zeros_like), level, 3)
    width, height = 9 * math.exp(0.4), 5 * math.exp(1.1)
    apart = (places(8) - centre).view(*GRIDS[0], 2)
    expected = 2 * (1 - (apart[..., 0] / width) ** 2 - (apart[..., 1] / height) ** 2)
    assert torch.allclose(found, expected, atol=1e-4)


def test_cells_that_point_to_the_detections_place_belong_to_it_and_others_do_not():
    # Left of x = 40 every cell points to (20, 30), right of it to (76, 14).
    left, right = torch.tensor([20.0, 30.0]), torch.tensor([76.0, 14.0])

    def shift(where):
        return torch.where(where[:, :1] < 40, left, right) - where

    branch = room.MaskBranch(["vote"], 16, STRIDES)
    found, _ = logits_of(branch, kernels(shift), 0, 14)  # column 2 of row 1
    on = (places(8)[:, 0] < 40).view(GRIDS[0])
    assert torch.allclose(found[on], torch.tensor(2.0), atol=1e-4)
    assert (found[~on] < 0).all()


def test_the_box_term_is_the_ellipse_in_the_predicted_box():
    branch = room.MaskBranch(["box"], 16, STRIDES)
    box = torch.tensor([[12.0, 10.0, 72.0, 50.0]])
    found, _ = logits_of(branch, kernels(torch.zeros_like), 1, 0, box)
    x, y = places(8).view(*GRIDS[0], 2).unbind(-1)
    assert torch.equal(found > 0, ((x - 42) / 30) ** 2 + ((y - 30) / 20) ** 2 < 1)


@pytest.mark.parametrize("level", [0, 1])
def test_the_divergence_term_is_minus_the_divergence(level):
    branch = room.MaskBranch(["divergence"], 16, STRIDES)
    found, _ = logits_of(branch, kernels(lambda where: -0.25 * where + 3), level, 0)
    inner = found[: -STRIDES[level] // 8, : -STRIDES[level] // 8]  # beyond the last cell the field is constant
    assert torch.allclose(inner, torch.tensor(0.5), atol=1e-4)


def test_interpolation_keeps_the_cells_where_they_lie():
    maps = torch.arange(12.0).view(1, 1, 3, 4) ** 2
    for factor in (1, 2, 4):
        found = room.upsampled(maps, factor)
        assert found.shape == (1, 1, 3 * factor, 4 * factor)
        assert torch.allclose(found[..., ::factor, ::factor], maps)
    assert room.upsampled(maps, 2)[0, 0, 0, 1] == 0.5 and room.upsampled(maps, 2)[0, 0, 0, -1] == 9


def test_gradients_reach_offsets_extents_and_all_parameters():
    torch.manual_seed(0)
    branch = room.MaskBranch(room.STANDARD, 16, STRIDES).double()
    index, level = torch.tensor([5, 97, 100]), torch.tensor([0, 1, 1])
    where = torch.cat([places(s) for s in STRIDES]).double()
    sizes = [h * w for h, w in GRIDS]

    def total(shift, half):
        parts = zip(shift.split(sizes, 1), half.split(sizes, 1), strict=True)
        seen = [Kernels(a, b, torch.zeros(1, a.shape[1], 9, 2).double()) for a, b in parts]
        maps = {name: value.double() for name, value in pyramid().items()}
        inputs = branch.prepare(maps, seen, [None] * 3)
        found = branch.logits(inputs, 0, index, level, where[index], torch.zeros(3, 4).double())
        return (found * torch.linspace(-1, 2, found.numel()).double().view_as(found)).sum()

    shift = (torch.randn(1, len(where), 2).double() * 3).requires_grad_()
    half = (torch.rand(1, len(where), 2).double() * 5 + 5).requires_grad_()
    chosen = torch.randperm(len(where))[:4]
    total(shift, half).backward()
    for parameter in branch.parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any())
    for values, grad in ((shift, shift.grad), (half, half.grad)):
        for cell in [*chosen.tolist(), 5, 97]:
            step = torch.zeros_like(values)
            step[0, cell, 1] = 1e-4
            with torch.no_grad():
                up = total(shift + step, half) if values is shift else total(shift, half + step)
                down = total(shift - step, half) if values is shift else total(shift, half - step)
            assert grad[0, cell, 1].item() == pytest.approx((up - down).item() / 2e-4, rel=1e-3, abs=1e-3)


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


def detector(terms=room.STANDARD, **settings) -> DenseDetector:
    torch.manual_seed(3)
    config = DenseConfig(("one", "two"), 16, mask_terms=tuple(terms), shorter_side=64, longer_side=96, **settings)
    return DenseDetector(config).eval()


PHOTO = np.random.default_rng(0).integers(0, 255, (70, 100, 3), dtype=np.uint8)
ARMS = [room.STANDARD, ("vote",), ("unary",), ("box", "divergence"), ("dynamic",)]


@pytest.mark.parametrize("terms", ARMS)
def test_detections_have_masks_in_their_boxes_and_the_boxes_are_those_without_masks(terms, tmp_path):
    one = detector(terms, shared=True, deform_layers=2)
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


def batch(count=2):
    images = torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(2))
    targets = [
        {"boxes": torch.tensor([[8.0, 8.0, 60.0, 50.0], [50.0, 20.0, 90.0, 60.0]]), "labels": torch.tensor([1, 0])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
    ][:count]
    return Batch(targets, images)


@pytest.mark.parametrize("terms", ARMS)
def test_losses_learn_from_boxes_alone_and_reach_every_parameter_of_the_branch(terms):
    one = detector(terms).train()
    losses = one.losses(batch())
    assert {"loss_projection", "loss_pairwise"} < set(losses) and not one.has_masks
    (losses["loss_projection"] + losses["loss_pairwise"]).backward()
    assert all(p.grad is not None for p in one.masks.parameters())
    offsets = one.heads["stride8"].deform.conv_offset.weight.grad
    told = {"vote", "box", "divergence"} & set(terms)
    if told:
        assert offsets is not None and bool((offsets != 0).any())


@pytest.mark.parametrize("terms", [("unary",), ("unary", "dynamic"), ("vote", "unary")])
def test_hidden_convolutions_learn_from_given_masks_which_photos_without_objects_have_too(terms, tmp_path):
    one = detector(terms, mask_hidden=8).train()
    given = batch()
    for target in given.targets:
        target["masks"] = torch.zeros(len(target["boxes"]), *SIZE, dtype=torch.bool)
        target["masks"][:, 20:40, 20:40] = True
    losses = one.losses(given)
    assert {"loss_made", "loss_outside"} < set(losses) and "loss_projection" not in losses
    (losses["loss_made"] + losses["loss_outside"]).backward()
    assert all(p.grad is not None for p in one.masks.parameters())
    assert sum(isinstance(module, torch.nn.Conv2d) for module in one.masks.after) == 3
    assert one.masks.of_detections == (terms != ("unary",))
    empty = one.losses(Batch(given.targets[1:] * 2, given.images))
    assert empty["loss_made"] == 0 and empty["loss_outside"] > 0
    one.eval().save(tmp_path / "one.safetensors", torch.float32)
    again = ds.load(tmp_path / "one.safetensors")
    assert again.config.mask_hidden == 8
    found = [each(PHOTO, min_score=0, max_detections=3)[0]["masks"] for each in (one, again)]
    assert torch.equal(*found)


def test_one_mask_for_all_detections_is_learned_from_all_objects_and_own_masks_from_their_own(monkeypatch):
    seen = []
    monkeypatch.setattr(mask_losses.box_losses, "made", lambda logits, masks, boxes: seen.append(masks) or masks.sum())
    given = batch()
    given.targets[0]["masks"] = torch.zeros(2, *SIZE, dtype=torch.bool)
    given.targets[0]["masks"][0, :32] = True
    given.targets[0]["masks"][1, 32:, :48] = True
    given.targets[1]["masks"] = torch.zeros(0, *SIZE, dtype=torch.bool)
    for terms in (("unary",), ("unary", "dynamic")):
        detector(terms).train().losses(given)
    both, own = seen
    assert both.shape == own.shape == (2, 16, 24)
    assert torch.equal(both[0], both[1]) and both[0, 2:7].min() == 1 and both[0, 9:, 13:].max() == 0
    assert sorted(own.flatten(1).sum(1).tolist()) == sorted(
        box_losses.pooled(given.targets[0]["masks"], (16, 24)).flatten(1).sum(1).tolist()
    )


def test_photos_without_objects_have_losses_of_zero_and_gradients():
    one = detector().train()
    empty = batch()
    empty = Batch(empty.targets[1:] * 2, empty.images)
    losses = one.losses(empty)
    assert losses["loss_projection"] == 0 and losses["loss_pairwise"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in one.masks.parameters())


def test_the_pairwise_loss_is_warmed_up_over_a_ninth_of_the_training():
    one = detector().train()
    found = []
    for done in (0.0, 1 / 18, 1 / 9, 0.7):
        one.set_training_progress(done)
        torch.manual_seed(0)
        found.append(one.losses(batch())["loss_pairwise"].item())
    assert found[0] == 0 and found[1] == pytest.approx(found[2] / 2) and found[2] == found[3] > 0


def test_feature_maps_without_colours_are_one_clear_line():
    one = detector().train()
    images = batch()
    maps = one.trunk(images.images)
    with pytest.raises(DeformscopeError, match="feature maps without colours"):
        one.losses(Batch(images.targets, maps=maps))


def test_terms_that_cannot_be_are_one_clear_line():
    with pytest.raises(DeformscopeError, match=r"mask_terms\[0\]: 'votes'; did you mean 'vote'"):
        from_dict(DenseConfig, {"class_names": ["one"], "mask_terms": ["votes"]})
    with pytest.raises(DeformscopeError, match="expected each term once"):
        DenseConfig(("one",), mask_terms=("vote", "vote"))
    with pytest.raises(DeformscopeError, match="one of 'vote' and 'box'"):
        DenseConfig(("one",), mask_terms=("vote", "box"))
    with pytest.raises(DeformscopeError, match="mask_hidden=12: expected a multiple of 8 up to 512"):
        DenseConfig(("one",), mask_terms=("unary",), mask_hidden=12)
    with pytest.raises(DeformscopeError, match="only of a detector with one stage"):
        DenseRCNNConfig(("one",), mask_terms=("vote",))
