"""BoxInst's losses: against slow literal versions in float64, their gradients, and their warm-up."""

import math

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook
from skimage.color import rgb2lab

with install_import_hook("deformscope.detectors.dense.box_losses", "typechecker.check"):
    from deformscope.detectors.dense import box_losses

H, W = 7, 9


def drawn(count=3, images=2, seed=0):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, H, W, generator=random, dtype=torch.float64) * 2
    boxes = torch.tensor([[4.0, 2.0, 25.0, 17.0], [0.0, 0.0, 36.0, 28.0], [10.0, 9.0, 13.0, 26.0]])[:count].double()
    colours = torch.randn(images, 3, H, W, generator=random, dtype=torch.float64) * 1.5
    return logits, boxes, colours, torch.tensor([0, 1, 1])[:count]


def literal_projection(logits, boxes):
    """One minus Dice of the maxima, for each mask, cell by cell."""
    found = []
    for logit, (x0, y0, x1, y1) in zip(logits.tolist(), boxes.tolist(), strict=True):
        score = [[1 / (1 + math.exp(-v)) for v in row] for row in logit]
        inside = [[y0 <= 4 * y + 0.5 < y1 and x0 <= 4 * x + 0.5 < x1 for x in range(W)] for y in range(H)]
        total = 0.0
        rows = [(max(score[y]), float(any(inside[y]))) for y in range(H)]
        columns = [(max(score[y][x] for y in range(H)), float(any(inside[y][x] for y in range(H)))) for x in range(W)]
        for pairs in (rows, columns):
            common = sum(a * b for a, b in pairs)
            total += 1 - 2 * common / (sum(a * a for a, _ in pairs) + sum(b * b for _, b in pairs) + 1e-5)
        found.append(total)
    return found


def literal_pairwise(logits, boxes, colours, image):
    """Mean over the eight neighbours of every cell in its box, where colours are similar."""
    total, count = 0.0, 0
    for logit, (x0, y0, x1, y1), of in zip(logits.tolist(), boxes.tolist(), image.tolist(), strict=True):
        m = [[1 / (1 + math.exp(-v)) for v in row] for row in logit]
        lab = colours[of].tolist()
        for y in range(H):
            for x in range(W):
                if not (y0 <= 4 * y + 0.5 < y1 and x0 <= 4 * x + 0.5 < x1):
                    continue
                for dy in (-2, 0, 2):
                    for dx in (-2, 0, 2):
                        v, u = y + dy, x + dx
                        if (dy, dx) == (0, 0) or not (0 <= v < H and 0 <= u < W):
                            continue
                        apart = math.sqrt(sum((lab[c][y][x] - lab[c][v][u]) ** 2 for c in range(3)))
                        if math.exp(-apart / 2) >= 0.3:
                            total -= math.log(m[y][x] * m[v][u] + (1 - m[y][x]) * (1 - m[v][u]))
                            count += 1
    return total / count


def test_both_losses_are_the_literal_ones():
    logits, boxes, colours, image = drawn()
    projection, pairwise = box_losses.losses(logits, boxes, colours, image)
    assert projection.tolist() == pytest.approx(literal_projection(logits, boxes), rel=1e-9)
    assert pairwise.item() == pytest.approx(literal_pairwise(logits, boxes, colours, image), rel=1e-9)


def test_their_gradients_are_those_of_finite_differences():
    logits, boxes, colours, image = drawn()
    logits.requires_grad_()

    def total(values):
        projection, pairwise = box_losses.losses(values, boxes, colours, image)
        return projection.sum() + pairwise

    assert torch.autograd.gradcheck(total, (logits,))


def test_a_mask_that_fills_its_box_alone_has_no_projection_loss_and_one_in_one_colour_no_pairwise_loss():
    _, boxes, _, image = drawn()
    inside = box_losses.cells_inside(boxes, (H, W))
    sure = torch.where(inside, 40.0, -40.0).double()
    projection, _ = box_losses.losses(sure, boxes, torch.zeros(2, 3, H, W).double(), image)
    assert projection.max() < 1e-5
    everywhere = torch.full((3, H, W), 40.0).double()
    _, pairwise = box_losses.losses(everywhere, boxes, torch.zeros(2, 3, H, W).double(), image)
    assert pairwise.item() == pytest.approx(0, abs=1e-12)


def test_extreme_logits_give_finite_losses_and_gradients():
    logits, boxes, colours, image = drawn()
    logits = (logits * 1e4).float().requires_grad_()
    projection, pairwise = box_losses.losses(logits, boxes.float(), colours.float(), image)
    (projection.sum() + pairwise).backward()
    assert projection.isfinite().all() and pairwise.isfinite() and logits.grad.isfinite().all()


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
    assert box_losses.outside(logits, boxes, 8).item() == pytest.approx(total / count)
    full = [torch.tensor([[0.0, 0.0, 99.0, 99.0]]).double()] * 2
    assert box_losses.outside(logits, full, 8) == 0


def test_without_objects_or_cells_there_is_no_loss():
    logits, _, colours, image = drawn()
    thin = torch.tensor([[5.0, 5.0, 6.0, 6.0]] * 3).double()  # between the cells
    projection, pairwise = box_losses.losses(logits, thin, colours, image)
    assert projection.tolist() == [0, 0, 0] and pairwise == 0
    projection, pairwise = box_losses.losses(logits[:0], thin[:0], colours, image[:0])
    assert len(projection) == 0 and pairwise == 0


def test_colours_are_skimages_of_the_pixels_around_each_cell():
    rgb = np.random.default_rng(0).random((12, 20, 3))
    assert np.allclose(
        box_losses.lab(torch.from_numpy(rgb).permute(2, 0, 1)).permute(1, 2, 0).numpy(), rgb2lab(rgb), atol=1e-3
    )
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    images = (torch.from_numpy(rgb).permute(2, 0, 1)[None] - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(
        3, 1, 1
    )
    found = box_losses.colours_of(images.float(), mean, std)
    assert found.shape == (1, 3, 3, 5)
    window = rgb[2:6, 6:10].mean(axis=(0, 1))  # around pixel (4, 8)
    assert np.allclose(found[0, :, 1, 2].numpy(), rgb2lab(window[None, None])[0, 0], atol=1e-2)


def test_masks_that_are_given_are_learned_in_their_boxes_alone():
    logits, boxes, _, _ = drawn()
    masks = torch.rand(3, H, W, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = box_losses.made(logits, masks, boxes)
    for number in range(3):
        x0, y0, x1, y1 = boxes[number].tolist()
        inside = [(y, x) for y in range(H) for x in range(W) if y0 <= 4 * y + 0.5 < y1 and x0 <= 4 * x + 0.5 < x1]
        pairs = [(1 / (1 + math.exp(-logits[number, y, x])), masks[number, y, x].item()) for y, x in inside]
        entropy = -sum(m * math.log(p) + (1 - m) * math.log(1 - p) for p, m in pairs) / len(pairs)
        squares = sum(p * p + m * m for p, m in pairs)
        dice = 1 - 2 * sum(p * m for p, m in pairs) / (squares + 1e-5)
        assert found[number].item() == pytest.approx(entropy + dice, rel=1e-9)
    none = box_losses.made(logits[:1], masks[:1], torch.tensor([[5.0, 5, 6, 6]]).double())
    assert none.item() == 0  # a box between cells


def test_masks_are_pooled_around_the_cells():
    mask = torch.zeros(1, 16, 20, dtype=torch.bool)
    mask[0, 6:10, 2:6] = True  # around the cell (2, 1), at pixel (8, 4)
    expected = torch.zeros(4, 5)
    expected[2, 1] = 1
    assert torch.equal(box_losses.pooled(mask, (4, 5))[0], expected)
    corner = torch.zeros(1, 16, 20, dtype=torch.bool)
    corner[0, :1, :1] = True  # of the four pixels around the first cell
    assert box_losses.pooled(corner, (4, 5))[0, 0, 0] == 0.25
    # An image of 13 × 18 px in a batch of 24 × 32: its last pixels are those of the cells there.
    small = torch.ones(2, 13, 18, dtype=torch.bool)
    found = box_losses.pooled(small, (6, 8))
    assert found.shape == (2, 6, 8) and found[0, :3, :5].min() == found[0, :3, :4].max() == 1
    assert found[0, 3, 0].item() == 0.75 and found[0, 4:].max() == 0 and found[0, :, 5:].max() == 0
