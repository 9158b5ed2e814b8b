"""The losses of masks that are made of terms: of boxes alone, or of masks that were made of boxes or annotated."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import box_losses
from .assign import assign, level_ranges, share_of_positives
from .masks import MaskBranch, upsampled
from .predictions import Predictions

MOST_MASKS = 32
"""Largest number of objects of a batch whose masks have a loss, drawn at random."""
Targets = list[dict[str, Tensor]]


def mask_logits(
    branch: MaskBranch, predictions: Predictions, image: int, index: Int[Tensor, " k"]
) -> Float[Tensor, "k h w"]:
    """Of the detections made in the cells ``index`` of an image, at the first stride."""
    assert predictions.masks is not None
    return branch.logits(
        predictions.masks,
        image,
        index,
        predictions.level[index],
        predictions.centres[index],
        predictions.boxes[image, index],
    )


def box_only_losses(
    branch: MaskBranch, predictions: Predictions, targets: Targets, colours: Float[Tensor, "n 3 _ _"], share: float
) -> dict[str, Tensor]:
    """``loss_projection`` and ``loss_pairwise`` (× ``share``) of a mask of each object, at most :data:`MOST_MASKS`;
    with a vote and a unary term ``loss_outside`` of the unary one.

    The mask is that of one of the cells that learn the object's box, drawn at random. ``colours`` is LAB at
    :data:`.box_losses.STRIDE`.
    """
    logits, boxes, image, _ = _drawn(branch, predictions, targets)
    count = share_of_positives(torch.ones(len(logits), dtype=torch.bool, device=logits.device))
    projection, pairwise = box_losses.losses(logits, boxes, colours, image)
    none = _all_parameters(branch, predictions)
    found = {"loss_projection": projection.sum() / count + none, "loss_pairwise": share * pairwise + none}
    return found | (_outside(branch, predictions, targets) if branch.votes else {})


def made_losses(branch: MaskBranch, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
    """``loss_made`` of a mask of each object as in :func:`box_only_losses`, in its box, with the ``masks`` of the
    targets; ``loss_outside`` of the unary term.

    Where all detections have the same mask, it is that of all objects that count.
    """
    logits, boxes, image, number = _drawn(branch, predictions, targets)
    masks = []
    for target in targets:
        fine = box_losses.pooled(target["masks"], logits.shape[1:])
        if not branch.of_detections:
            counted = fine[~target["ignore"]] if "ignore" in target else fine
            fine = counted.amax(dim=0).expand_as(fine) if len(counted) else fine
        masks.append(fine)
    wanted = [masks[i][j] for i, j in zip(image.tolist(), number.tolist(), strict=True)]
    count = share_of_positives(torch.ones(len(logits), dtype=torch.bool, device=logits.device))
    made = box_losses.made(logits, torch.stack(wanted), boxes) if wanted else logits.new_zeros(0)
    found = {"loss_made": made.sum() / count + _all_parameters(branch, predictions)}
    return found | _outside(branch, predictions, targets)


def _drawn(
    branch: MaskBranch, predictions: Predictions, targets: Targets
) -> tuple[Float[Tensor, "k h w"], Float[Tensor, "k 4"], Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Logits at :data:`.box_losses.STRIDE` of one cell for each object, its box, its image, and its place there."""
    ranges = level_ranges(branch.strides)
    logits, boxes, images, numbers = [], [], [], []
    for image, target in enumerate(targets):
        label, box, of = assign(predictions.centres, predictions.level, target, ranges)
        luck = torch.where(label >= 0, torch.rand(len(label), device=label.device), -1.0)
        cells = [torch.where(of == number, luck, -1.0).argmax() for number in of[label >= 0].unique()]
        index = torch.stack(cells) if cells else of[:0]
        logits.append(mask_logits(branch, predictions, image, index))
        images += [image] * len(cells)
        boxes.append(box[index])
        numbers.append(of[index])
    whole = torch.cat(logits)
    chosen = torch.randperm(len(whole), device=whole.device)[:MOST_MASKS]
    of_image = torch.tensor(images, dtype=torch.int64, device=whole.device)[chosen]
    fine = upsampled(whole[chosen][None], branch.strides[0] // box_losses.STRIDE)[0]
    return fine, torch.cat(boxes)[chosen], of_image, torch.cat(numbers)[chosen]


def _outside(branch: MaskBranch, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
    if "unary" not in branch.terms:
        return {}
    assert predictions.masks is not None
    own = [target["boxes"].float() for target in targets]
    return {"loss_outside": box_losses.outside(predictions.masks.maps[:, 0], own, branch.strides[0])}


def _all_parameters(branch: MaskBranch, predictions: Predictions) -> Float[Tensor, ""]:
    """Zero: every parameter has a gradient, for which DistributedDataParallel waits."""
    return torch.stack([p.sum() for p in branch.parameters()]).sum() * 0 + predictions.cls.sum() * 0
