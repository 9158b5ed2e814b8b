"""Read Detectron2 checkpoints (``.pkl`` of its model zoo, ``.pth`` of its trainer) without Detectron2.

:data:`..config.DETECTRON2` has the conventions in which it differs from MMDetection; its files do not state them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import DeformscopeError
from ..options import Weights
from ..rcnn import DETECTRON2, RCNN
from .architecture import assemble, chosen, read_config, renamed, renamer
from .unpickle import tensors

RES = "backbone.bottom_up."
OWN_NAMES = {
    RES + "stem.": "backbone.",
    **{f"{RES}res{i}.": f"backbone.layer{i - 1}." for i in range(2, 6)},
    **{f"backbone.fpn_lateral{i}.": f"neck.inner_blocks.{i - 2}.0." for i in range(2, 6)},
    **{f"backbone.fpn_output{i}.": f"neck.layer_blocks.{i - 2}.0." for i in range(2, 6)},
    "proposal_generator.rpn_head.conv.": "rpn.head.conv.0.0.",
    "proposal_generator.rpn_head.objectness_logits.": "rpn.head.cls_logits.",
    "proposal_generator.rpn_head.anchor_deltas.": "rpn.head.bbox_pred.",
    "roi_heads.box_head.fc1.": "box_head.shared.fc6.",
    "roi_heads.box_head.fc2.": "box_head.shared.fc7.",
    "roi_heads.box_predictor.cls_score.": "box_head.cls.",
    "roi_heads.box_predictor.bbox_pred.": "box_head.box.",
    **{f"roi_heads.mask_head.mask_fcn{i + 1}.": f"mask_head.convs.{i}.0." for i in range(32)},
    "roi_heads.mask_head.deconv.": "mask_head.predictor.conv5_mask.",
    "roi_heads.mask_head.predictor.": "mask_head.predictor.mask_fcn_logits.",
}
"""Prefixes of Detectron2's keys and of the detector's own."""
IN_BLOCK = {
    ".shortcut.norm.": ".downsample.1.",
    ".shortcut.": ".downsample.0.",
    ".conv1.norm.": ".bn1.",
    ".conv2.norm.": ".bn2.",
    ".conv3.norm.": ".bn3.",
    ".conv2_offset.": ".conv2.conv_offset.",
}
"""Parts of a bottleneck. In Detectron2 the norm belongs to its convolution, and the offset convolution is beside it."""
DROPPED = re.compile(r"pixel_(mean|std)$|cell_anchors")

_start_to_own = renamer(OWN_NAMES)
_start_to_theirs = renamer({own: theirs for theirs, own in OWN_NAMES.items()})


def to_own(key: str) -> str:
    """Translate Detectron2's key to the detector's own."""
    if key.startswith(RES):
        for theirs, own in IN_BLOCK.items():
            key = key.replace(theirs, own)
    return _start_to_own(key)


def to_theirs(key: str) -> str:
    """Translate the detector's own key to Detectron2's."""
    if key.startswith("backbone."):
        stage = key.split(".")[1]
        key = RES + (
            f"res{int(stage[5:]) + 1}" + key[len("backbone.") + len(stage) :]
            if stage.startswith("layer")
            else "stem." + key[len("backbone.") :]
        )
        for theirs, own in IN_BLOCK.items():
            key = key.replace(own, theirs)
        return key
    return _start_to_theirs(key)


def is_detectron2(state: Mapping[str, Any]) -> bool:
    """Whether these are Detectron2's keys."""
    parts = (re.escape(RES), r"proposal_generator\.", r"roi_heads\.")
    beginning = re.compile(r"(module\.)*(model(Student|Teacher)\.)?(module\.)*(" + "|".join(parts) + ")")
    return any(beginning.match(str(key)) for key in state)


def load(path: Path, content: dict[str, Any], name: str, weights: Weights = "plain") -> RCNN:
    """Build a detector from the content of a Detectron2 file: ``model``, and things that are not needed.

    ``weights`` selects a set if the file also has an average: see :func:`.architecture.chosen`.
    """
    state = content.pop("model", None)
    if not isinstance(state, dict):
        raise DeformscopeError(f"{path}: no 'model' in it; expected a checkpoint of a whole Detectron2 detector")
    kept = {key: value for key, value in chosen(path, state, weights).items() if not DROPPED.search(key)}
    state.clear()
    content.clear()
    own = renamed(path, tensors(path, kept), to_own)
    config = read_config(path, own, DETECTRON2, to_theirs)
    return assemble(path, own, config, name, to_theirs)
