"""Supervision of any model's offsets: the gradient goes where it shall, once, and teaches what it says."""

import pytest
import torch
from supervised_nets import BOXES, KINDS, Layer, images, net
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from deformscope.training import OffsetSupervision, Schedule


def supervised(model: nn.Module, supervision: OffsetSupervision) -> torch.Tensor:
    return supervised_by(supervision, BOXES, model)


def supervised_by(supervision: OffsetSupervision, targets, model: nn.Module) -> torch.Tensor:
    with supervision:
        model(images())
    return supervision.loss(targets, step=0)


@pytest.mark.parametrize(("kind", "groups"), [("module", 2), ("function", 1), ("embedding_bag", 2), ("torchvision", 1)])
@pytest.mark.parametrize(("loss", "layers"), [("centre", 1), ("extent", 2)])
def test_the_gradient_is_that_of_finite_differences_and_reaches_the_offset_convolution_alone(
    kind, groups, loss, layers
):
    model = net(kind, groups=groups)
    supervision = OffsetSupervision(model, images(1), ["two"], loss=[loss], weight=1.0, composed=layers)
    supervised(model, supervision).backward()
    # What lies below the layer is reached too, as by any loss; its own kernel and what stands beside it are not.
    assert model.two.conv.weight.grad is None and model.two.conv.bias.grad is None
    weight = model.two.offset.weight
    assert weight.grad is not None and bool((weight.grad != 0).any())
    largest = weight.grad.abs().flatten().topk(3).indices.tolist()
    flat, step = weight.data.view(-1), 1e-6
    for index in [*largest, 0, 7]:
        before = flat[index].item()
        flat[index] = before + step
        up = supervised(model, supervision).item()
        flat[index] = before - step
        down = supervised(model, supervision).item()
        flat[index] = before
        assert (up - down) / (2 * step) == pytest.approx(weight.grad.view(-1)[index].item(), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_call_is_found_and_gives_the_same_loss(kind):
    reference, model = net("module"), net(kind)
    found = []
    for one in (reference, model):
        supervision = OffsetSupervision(one, images(1))
        layers = ("one.conv", "two.conv") if one.one.kind == "module" else ("one", "two")
        assert supervision.layers == layers
        found.append(supervised(one, supervision))
    assert torch.allclose(*found)


def test_a_literal_mean_over_the_cells_in_boxes():
    model = net("function")
    supervision = OffsetSupervision(model, images(1), ["two"], loss="centre", weight=2.0)
    with supervision:
        model(images())
    offset = supervision.field("two").offset.detach()  # [2 1 9 8 10 2]
    found = supervision.loss(BOXES)
    values = []
    for image, boxes in enumerate(BOXES):
        for row in range(8):
            for column in range(10):
                y, x = 4 * row + 2, 4 * column + 2  # a 4×4 convolution of stride 4 without padding
                around = [b for b in boxes.tolist() if b[0] < x < b[2] and b[1] < y < b[3]]
                if not around:
                    continue
                box = min(around, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]))
                d_f = offset[image, 0, :, row, column].mean(dim=0)
                for axis, place in ((1, y), (0, x)):
                    middle = (box[axis] + box[axis + 2]) / 2
                    gap = abs(place + 4 * float(d_f[1 - axis]) - middle) / (box[axis + 2] - box[axis])
                    values.append(gap**2 * 4.5 if gap < 1 / 9 else gap - 1 / 18)
    assert found.item() == pytest.approx(2 * sum(values) / len(values))


def test_boxes_of_other_sizes_and_ignored_ones_teach_nothing():
    model = net("function")
    only = OffsetSupervision(model, images(1), {"two": (15.0, 100.0)})
    every = OffsetSupervision(model, images(1), ["two"])
    ignoring = [{"boxes": BOXES[0]}, {"boxes": BOXES[1], "ignore": torch.tensor([False, True])}]
    empty = supervised_by(every, [torch.zeros(0, 4), {"boxes": torch.zeros(0, 4)}], model)
    empty.backward()  # photos without boxes cost nothing, and still have a gradient
    assert empty.item() == 0 and not bool(model.two.offset.weight.grad.any())
    losses = []
    for supervision, targets in ((only, [BOXES[0], BOXES[1][:1]]), (only, BOXES), (every, BOXES), (every, ignoring)):
        losses.append(supervised_by(supervision, targets, model).item())
    assert losses[0] == losses[1]  # the box of 49 px² is too small for that layer, so its cells learn the one around it
    assert losses[2] != losses[3] != losses[0]  # ignored cells learn neither


@pytest.mark.parametrize("kind", ["module", "embedding_bag"])
def test_checkpointing_counts_a_call_once(kind):
    plain, saving = net(kind), net(kind)
    saving.frozen_in_checkpoints = False
    losses = []
    for model in (plain, saving):
        supervision = OffsetSupervision(model, images(1), composed=1)
        with supervision:
            out = model(images())
            loss = out.square().mean() + supervision.loss(BOXES, step=0)
            loss.backward()  # inside of the block on purpose: recomputation is not a second call
            assert not supervision._live.calls
        losses.append(loss)
    assert torch.allclose(*losses)
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad)


@pytest.mark.parametrize(("kind", "factor"), [("module", 0.0), ("embedding_bag", 0.1)])
def test_the_tasks_gradient_into_the_offsets_is_scaled_and_the_supervisions_is_not(kind, factor):
    gradients = {}
    for name, share in (("whole", 1.0), ("part", factor)):
        model = net(kind)
        supervision = OffsetSupervision(model, images(1), ["two"], task_gradient=share)
        with supervision:
            out = model(images())
        told = torch.autograd.grad(supervision.loss(BOXES), model.two.offset.weight, retain_graph=True)[0]
        task = torch.autograd.grad(out.square().sum(), model.two.offset.weight, allow_unused=True)[0]
        gradients[name] = told, torch.zeros_like(told) if task is None else task, out
    assert torch.equal(gradients["whole"][2], gradients["part"][2])
    assert torch.allclose(gradients["whole"][0], gradients["part"][0])
    assert torch.allclose(factor * gradients["whole"][1], gradients["part"][1]) and bool(gradients["whole"][1].any())


def test_a_side_branch_learns_and_leaves_the_offsets_alone():
    model = net()
    supervision = OffsetSupervision(model, images(1), ["two"], side_branch=True)
    assert [tuple(p.shape) for p in supervision.side_branches.parameters()] == [(18, 4, 3, 3), (18,)]
    supervised(model, supervision).backward()
    assert model.two.offset.weight.grad is None
    assert all(bool(p.grad.any()) for p in supervision.side_branches.parameters())


def test_a_plain_loop_learns_a_planted_centre_and_size():
    # A bright rectangle on a dark ground; nothing but the supervision teaches.
    def drawn(step: int):
        random = torch.Generator().manual_seed(step)
        pictures, boxes = torch.zeros(8, 3, 64, 64), []
        for picture in pictures:
            half = 8 + 10 * torch.rand(2, generator=random)
            middle = 20 + 24 * torch.rand(2, generator=random)
            low, high = (middle - half).round().int().tolist(), (middle + half).round().int().tolist()
            picture[:, low[1] : high[1], low[0] : high[0]] = 1
            boxes.append(torch.tensor([[*low, *high]], dtype=torch.float32))
        return pictures, boxes

    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, 2), nn.ReLU(), nn.Conv2d(32, 32, 5, 2, 2),
        nn.ReLU(), nn.Conv2d(32, 32, 7, 1, 3), nn.ReLU(),
    )  # fmt: skip
    model = nn.Sequential(features, Layer("module", 32))
    nn.init.zeros_(model[1].offset.weight)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    supervision = OffsetSupervision(model, drawn(0)[0], weight=1.0)
    losses = []
    for step in range(120):
        pictures, boxes = drawn(step)
        with supervision:
            task = model(pictures).mean() * 0
        loss = task + supervision.loss(boxes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])

    pictures, boxes = drawn(1000)
    with supervision:
        model(pictures)
    field = supervision.field(supervision.layers[0])
    from deformscope import extent, split

    d_f, d_k = split(field.offset.detach())
    height, width = extent(d_k, dilation=(1, 1))
    for index, box in enumerate(torch.cat(boxes)):
        centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        y, x = ((centre - 0.5) / 8).round().long().flip(0).tolist()
        found = torch.tensor([8 * x + 0.5, 8 * y + 0.5]) + 8 * d_f[index, 0, 0, y, x].flip(0)
        assert ((found - centre).abs() < 0.12 * size).all()
        reach = 8 * torch.stack([width[index, 0, y, x], height[index, 0, y, x]])
        assert ((reach / (0.8 * size)).log().abs() < 0.3).all()


def test_photos_that_the_model_resizes_itself_have_boxes_in_their_own_px():
    class Resizing(nn.Module):
        def __init__(self, shorter: int) -> None:
            super().__init__()
            self.transform = GeneralizedRCNNTransform(shorter, 200, [0.5] * 3, [0.2] * 3, size_divisible=4)
            self.net = net("function").float()

        def forward(self, photos):
            return self.net(self.transform(photos)[0].tensors)

    photos = [torch.rand(3, 32, 40, generator=torch.Generator().manual_seed(2)) for _ in range(2)]
    model = Resizing(64)  # twice as large
    supervision = OffsetSupervision(model, photos, ["two"], loss=["centre"])
    with supervision:
        model(photos)
        inner = dict(supervision._live.calls)
    found = supervision.loss(BOXES)
    supervision._live.calls, supervision._live.scales = inner, []
    assert torch.allclose(found, supervision.loss([2 * boxes for boxes in BOXES]))


def test_masks_say_which_cells_are_told():
    model = net("function")
    mask = torch.zeros(1, 32, 40, dtype=torch.bool)
    mask[0, 5:21, 3:17] = True
    mask[0, 20, 28] = True  # so that the box is larger than the part with cells
    empty = {"masks": torch.zeros(0, 32, 40, dtype=torch.bool)}
    box = torch.tensor([[3.0, 5.0, 29.0, 21.0]])
    by_mask = OffsetSupervision(model, images(1), ["two"], within="mask")
    by_box = OffsetSupervision(model, images(1), ["two"])
    with by_mask, by_box:
        model(images())
    counted = []
    for supervision, targets in ((by_mask, [{"masks": mask}, empty]), (by_box, [box, torch.zeros(0, 4)])):
        field = supervision.field("two")
        counted.append(supervision._layer_loss("two", supervision._live.calls, _checked(supervision, targets))[1])
        assert bool(supervision.loss(targets) > 0)
        assert field.offset.shape[0] == 2
    # Cells at y = 6, 10, 14, 18 and x = 6, 10, 14 on the mask; in its box also x = 18, 22, 26.
    assert counted == [12, 24]


def _checked(supervision, targets):
    from deformscope.training.offset_losses import checked

    return checked(targets, 2, supervision.within)


def test_weights_follow_the_schedule():
    model = net()
    supervision = OffsetSupervision(model, images(1), weight=Schedule(0.5, "decay", 4))
    values = []
    for _ in range(6):
        with supervision:
            model(images())
        values.append(supervision.loss(BOXES).item())
    assert values == pytest.approx([values[0] * share for share in (1, 0.75, 0.5, 0.25, 0, 0)])
    assert [Schedule(2.0, "warmup", 4)(step) for step in (0, 1, 4, 9)] == [0, 0.5, 2, 2]
    assert Schedule(2.0)(100) == 2


def test_nothing_is_left_behind():
    model = net()
    model.train()
    model.one.eval()
    supervision = OffsetSupervision(model, images(1))
    assert model.training and not model.one.training
    with pytest.raises(ZeroDivisionError), supervision:
        model(images())
        raise ZeroDivisionError
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    with supervision:  # and it can be used again
        model(images())
    assert supervision.loss(BOXES) > 0
