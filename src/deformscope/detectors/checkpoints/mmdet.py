"""Read MMDetection checkpoints (2.x and 3.x) without MMDetection: Faster and Mask R-CNN on ResNet-FPN.

Their configuration is Python; it is read as plain values without running it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import DeformscopeError
from ..options import Weights
from ..rcnn import MMDETECTION, RCNN
from ..rcnn.config import Dialect
from .architecture import assemble, chosen, exchanged, read_config, renamed, renamer
from .unpickle import tensors

LONGEST = 1_000_000
"""Characters; longer configurations are not parsed."""
OWN_NAMES = {
    **{f"neck.lateral_convs.{i}.conv.": f"neck.inner_blocks.{i}.0." for i in range(4)},
    **{f"neck.fpn_convs.{i}.conv.": f"neck.layer_blocks.{i}.0." for i in range(4)},
    "rpn_head.rpn_conv.": "rpn.head.conv.0.0.",
    "rpn_head.rpn_cls.": "rpn.head.cls_logits.",
    "rpn_head.rpn_reg.": "rpn.head.bbox_pred.",
    "roi_head.bbox_head.shared_fcs.0.": "box_head.shared.fc6.",
    "roi_head.bbox_head.shared_fcs.1.": "box_head.shared.fc7.",
    "roi_head.bbox_head.fc_cls.": "box_head.cls.",
    "roi_head.bbox_head.fc_reg.": "box_head.box.",
    **{f"roi_head.mask_head.convs.{i}.conv.": f"mask_head.convs.{i}.0." for i in range(32)},
    "roi_head.mask_head.upsample.": "mask_head.predictor.conv5_mask.",
    "roi_head.mask_head.conv_logits.": "mask_head.predictor.mask_fcn_logits.",
}
"""Prefixes of MMDetection's keys and of the detector's own; those of the backbone are the same."""

to_own = renamer(OWN_NAMES)
to_theirs = renamer({own: theirs for theirs, own in OWN_NAMES.items()})

PREPROCESSING = "data_preprocessor."
"""Keys of mean and standard deviation, which are taken from the configuration."""
ASSUMED: dict[tuple[str, ...], Any] = {
    ("backbone", "type"): "ResNet",
    ("neck", "type"): "FPN",
    ("rpn_head", "anchor_generator", "type"): "AnchorGenerator",
    ("rpn_head", "anchor_generator", "scales"): [8],
    ("rpn_head", "anchor_generator", "ratios"): [0.5, 1.0, 2.0],
    ("rpn_head", "anchor_generator", "strides"): [4, 8, 16, 32, 64],
    ("rpn_head", "bbox_coder", "type"): "DeltaXYWHBBoxCoder",
    ("rpn_head", "bbox_coder", "target_stds"): [1.0, 1.0, 1.0, 1.0],
    ("roi_head", "type"): "StandardRoIHead",
    ("roi_head", "bbox_head", "bbox_coder", "target_stds"): [0.1, 0.1, 0.2, 0.2],
    ("roi_head", "bbox_roi_extractor", "roi_layer", "sampling_ratio"): 0,
}
"""Settings that keys and shapes do not show and that the detector assumes; files with others are refused."""


def is_mmdet(state: Mapping[str, Any]) -> bool:
    """Whether these are MMDetection's keys, of any version."""
    beginning = re.compile(r"(module\.)*((student|teacher)\.)?(module\.)*(roi_head\.|rpn_head\.|bbox_head\.|neck\.)")
    return any(beginning.match(str(key)) for key in state)


def load(path: Path, content: dict[str, Any], name: str, weights: Weights = "plain") -> RCNN:
    """Build a detector from the content of an MMDetection file: ``state_dict`` and, if present, ``meta``.

    ``weights`` selects a set if the file also has an average: see :func:`.architecture.chosen`.
    """
    state, meta = content.get("state_dict", content), content.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    file_config = parse(meta.get("config") or meta.get("cfg"))
    own_set = chosen(path, state, weights, averaged="ema_state_dict" in content or exchanged(file_config))
    kept = {key: value for key, value in own_set.items() if not key.startswith(PREPROCESSING)}
    version = str(meta.get("mmdet_version", ""))
    if version.startswith(("0.", "1.")) or any(key.startswith(("bbox_head.fc_", "bbox_head.shared_")) for key in kept):
        raise DeformscopeError(
            f"{path}: a checkpoint of MMDetection 1.x or older, whose boxes, anchors and class order mean other "
            "things; use the 2.x file of the same model"
        )
    values = tensors(path, kept)
    own = renamed(path, values, lambda key: to_own(_offset_alias(key)))
    content.clear()  # the tensors of an optimiser in the file are no longer needed
    dialect, groups = _dialect(path, _of_the_detector(file_config))
    config = read_config(path, own, dialect, to_theirs, _class_names(meta), groups)
    return assemble(path, own, config, name, to_theirs)


def _of_the_detector(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the detector itself as ``model``, if the file's model trains a pair of it."""
    inner = value_at(config, "model", "detector")
    return config | {"model": inner} if isinstance(inner, dict) else config


def _offset_alias(key: str) -> str:
    """Translate mmcv's older name of the offset convolution, which was beside the deformable one, to the newer one."""
    return re.sub(r"\.conv2_offset\.", ".conv2.conv_offset.", key)


def _class_names(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    for place in (("CLASSES",), ("dataset_meta", "classes"), ("dataset_meta", "CLASSES")):
        names = value_at(meta, *place)
        if names and isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def _dialect(path: Path, values: Mapping[str, Any]) -> tuple[Dialect, int | None]:
    """MMDetection's conventions with the file's stride style and image preparation, and the number of offset groups."""
    for place, assumed in ASSUMED.items():
        stated = value_at(values, "model", *place)
        if stated is not None and stated != assumed:
            raise DeformscopeError(
                f"{path}: model.{'.'.join(place)}={stated!r} in its configuration; only {assumed!r} can be run"
            )
    preparation = MMDETECTION.preparation
    for place in (("model", "data_preprocessor"), ("img_norm_cfg",)):
        mean, std = _colour(value_at(values, *place, "mean")), _colour(value_at(values, *place, "std"))
        if mean and std:
            rgb = value_at(values, *place, "bgr_to_rgb") or value_at(values, *place, "to_rgb")
            preparation = replace(preparation, mean=mean, std=std, bgr=not rgb)
            break
    scale = _test_scale(values.get("test_pipeline"))
    if scale:
        preparation = replace(preparation, shorter_side=min(scale), longer_side=max(scale))
    caffe = value_at(values, "model", "backbone", "style") == "caffe"
    dcn = ("model", "backbone", "dcn")
    groups = value_at(values, *dcn, "deform_groups") or value_at(values, *dcn, "deformable_groups")
    dialect = replace(MMDETECTION, stride_in_1x1=caffe, preparation=preparation)
    return dialect, groups if isinstance(groups, int) else None


def _test_scale(pipeline: Any) -> tuple[int, int] | None:
    for step in pipeline if isinstance(pipeline, list) else ():
        if isinstance(step, dict):
            scale = step.get("scale") if step.get("type") == "Resize" else step.get("img_scale")
            if isinstance(scale, list) and len(scale) == 2 and all(isinstance(s, int) and s > 0 for s in scale):
                return scale[0], scale[1]
    return None


def _colour(value: Any) -> tuple[float, float, float] | None:
    if isinstance(value, list) and len(value) == 3 and all(isinstance(v, (int, float)) for v in value):
        return value[0], value[1], value[2]
    return None


def parse(text: Any) -> dict[str, Any]:
    """The top-level assignments of a configuration: ``dict(...)`` calls, lists and literals; others are left out.

    Tuples become lists. Returns nothing for a text that is not such a configuration.
    """
    if not isinstance(text, str) or len(text) > LONGEST:
        return {}
    try:
        body = ast.parse(text).body
        return {
            target.id: _value(statement.value)
            for statement in body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def value_at(values: Mapping[str, Any], *place: str) -> Any:
    """The value under nested names, or None."""
    current: Any = values
    for name in place:
        if not isinstance(current, Mapping):
            return None
        current = current.get(name)
    return current


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        number = node.operand.value
        return -number if isinstance(number, (int, float)) else None
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {key.value: _value(item) for key, item in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
    return None
