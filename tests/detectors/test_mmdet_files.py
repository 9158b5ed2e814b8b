"""MMDetection files of every variant, made on the spot: what is read, what is refused, and in which words."""

import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch

from deformscope.detectors.checkpoints.mmdet import parse, to_theirs
from deformscope.detectors.zoo import load
from deformscope.errors import DeformscopeError


def state_of(detector) -> OrderedDict:
    return OrderedDict((to_theirs(key), value.clone()) for key, value in detector.state_dict().items())


def photo(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (60, 84, 3), dtype=np.uint8)


def assert_same(loaded, detector) -> None:
    assert loaded.state_dict().keys() == detector.state_dict().keys()
    for key, value in detector.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def refused(path, *said: str) -> None:
    with pytest.raises(DeformscopeError) as error:
        load(path)
    text = str(error.value)
    assert "\n" not in text and str(path) in text
    for words in said:
        assert words in text


@pytest.mark.parametrize(
    ("deformable", "depth", "mask"),
    [
        ("dconv_c3-c5", 50, False),
        ("mdconv_c3-c5_group4", 50, True),
        ("dconv_c3-c5_group4", 50, False),
        ("dconv_c2,c4", 50, True),
        ("mdconv_c5_group2", 50, False),
        (None, 50, True),
    ],
)
def test_every_variant_is_told_by_its_keys_and_shapes_alone(tmp_path, thin, random_rcnn, deformable, depth, mask):
    detector = random_rcnn(thin(deformable, depth=depth, mask=mask, mask_convs=3 if mask else 4))
    path = tmp_path / "variant.pth"
    torch.save({"state_dict": state_of(detector)}, path)
    loaded = load(path)
    config = loaded.config
    assert (config.depth, config.mask, config.deformable) == (depth, mask, detector.config.deformable)
    assert config.class_names == ("class 0", "class 1", "class 2")
    assert_same(loaded, detector)
    assert not loaded.training


def test_the_older_name_of_the_offset_convolution_is_the_same_layer(tmp_path, thin, random_rcnn):
    detector = random_rcnn(thin("mdconv_c3-c5"))
    state = OrderedDict((k.replace("conv2.conv_offset", "conv2_offset"), v) for k, v in state_of(detector).items())
    assert any(".conv2_offset.weight" in key for key in state)
    torch.save({"state_dict": state}, tmp_path / "old.pth")
    assert_same(load(tmp_path / "old.pth"), detector)


def test_a_file_with_both_names_of_one_layer_is_refused(tmp_path, thin, random_rcnn):
    state = state_of(random_rcnn(thin()))
    state["backbone.layer2.1.conv2_offset.bias"] = state["backbone.layer2.1.conv2.conv_offset.bias"] + 1
    torch.save({"state_dict": state}, tmp_path / "both.pth")
    refused(tmp_path / "both.pth", "layer2.1.conv2.conv_offset.bias and ", "layer2.1.conv2_offset.bias mean the same")


def test_half_precision_is_widened_and_the_prefix_of_parallel_training_dropped(tmp_path, thin, random_rcnn):
    detector = random_rcnn(thin())
    for value in detector.parameters():
        value.data = value.data.half().float()
    state = {f"module.{k}": v.half() if "weight" in k and "bn" not in k else v for k, v in state_of(detector).items()}
    torch.save({"state_dict": state}, tmp_path / "half.pth")
    loaded = load(tmp_path / "half.pth")
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    assert_same(loaded, detector)


def test_a_loaded_detector_gives_the_detections_of_the_one_that_was_saved(tmp_path, thin, random_rcnn):
    detector = random_rcnn(thin("mdconv_c3-c5_group4", mask=True).resized_to(64, 96))
    torch.save({"state_dict": state_of(detector)}, tmp_path / "a.pth")
    loaded = load(tmp_path / "a.pth", shorter_side=64, longer_side=96)
    for one, other in zip(detector([photo(), photo(1)]), loaded([photo(), photo(1)]), strict=True):
        assert len(one["labels"]) > 0 and one["masks"].shape[1:] == (60, 84)
        assert all(torch.equal(one[key], other[key]) for key in one)


CONFIG = """
model = dict(backbone=dict(type='ResNet', style='{style}', dcn=dict(type='DCN', deform_groups=1)),
             rpn_head=dict(anchor_generator=dict(type='AnchorGenerator', scales=[{scale}])))
img_norm_cfg = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb={rgb})
test_pipeline = [dict(type='LoadImageFromFile'),
                 dict(type='MultiScaleFlipAug', img_scale=(900, 500), transforms=[dict(type='Resize')])]
"""


def test_what_keys_cannot_tell_is_read_from_the_configuration(tmp_path, thin, random_rcnn):
    detector = random_rcnn(thin())
    meta = {"CLASSES": ("a", "b", "c"), "config": CONFIG.format(style="caffe", scale=8, rgb=False)}
    torch.save({"state_dict": state_of(detector), "meta": meta}, tmp_path / "a.pth")
    config = load(tmp_path / "a.pth").config
    how = config.dialect.preparation
    assert config.class_names == ("a", "b", "c")
    assert config.dialect.stride_in_1x1
    assert (how.mean, how.std, how.bgr) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), True)
    assert (how.shorter_side, how.longer_side) == (500, 900)
    meta = {"dataset_meta": {"classes": ["x", "y", "z"]}, "cfg": CONFIG.format(style="pytorch", scale=8, rgb=True)}
    torch.save({"state_dict": state_of(detector), "meta": meta}, tmp_path / "b.pth")
    config = load(tmp_path / "b.pth").config
    assert config.class_names == ("x", "y", "z")
    assert not config.dialect.stride_in_1x1 and not config.dialect.preparation.bgr


def test_a_configuration_with_other_anchors_is_refused(tmp_path, thin, random_rcnn):
    meta = {"config": CONFIG.format(style="pytorch", scale=4, rgb=True)}
    torch.save({"state_dict": state_of(random_rcnn(thin())), "meta": meta}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "anchor_generator.scales=[4]", "[8]")


@pytest.mark.parametrize(
    "text", ["model = dict(", "x = " + "(" * 5000, 17, "import os\nos.system('x')", "a = {**b, 'c': d()}"]
)
def test_a_configuration_is_read_and_never_run(text):
    assert parse(text) in ({}, {"a": {"c": None}})


def test_records_of_training_beside_the_weights_do_not_matter(tmp_path, thin, random_rcnn, monkeypatch):
    """mmengine's own classes lie in every file that its runner saves; they are not installed here."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self):
            self._log_history = np.arange(3.0)
            self._statistics_methods = {"mean": HistoryBuffer.mean}  # pickled as a call of getattr
            self.last = np.float64(0.5)

        def mean(self): ...

    HistoryBuffer.__qualname__, HistoryBuffer.mean.__qualname__ = "HistoryBuffer", "HistoryBuffer.mean"
    HistoryBuffer.__module__ = HistoryBuffer.mean.__module__ = module.__name__
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    detector = random_rcnn(thin())
    content = {"state_dict": state_of(detector), "message_hub": {"log_scalars": {"loss": HistoryBuffer()}}}
    for legacy in (False, True):
        torch.save(content, tmp_path / f"{legacy}.pth", _use_new_zipfile_serialization=not legacy)
    monkeypatch.undo()
    known = torch.serialization.get_safe_globals()
    assert_same(load(tmp_path / "False.pth"), detector)
    assert_same(load(tmp_path / "True.pth"), detector)
    assert torch.serialization.get_safe_globals() == known  # nothing stays allowed


def test_version_1_files_are_refused_in_clear_words(tmp_path, thin, random_rcnn):
    state = {key.removeprefix("roi_head."): value for key, value in state_of(random_rcnn(thin())).items()}
    torch.save({"state_dict": state}, tmp_path / "v1.pth")
    refused(tmp_path / "v1.pth", "MMDetection 1.x", "2.x file of the same model")
    torch.save({"state_dict": state, "meta": {"mmdet_version": "1.0rc1"}}, tmp_path / "v1b.pth")
    refused(tmp_path / "v1b.pth", "MMDetection 1.x")


def test_missing_unexpected_and_misshapen_keys_are_named_as_the_file_has_them(tmp_path, thin, random_rcnn):
    detector, path = random_rcnn(thin()), tmp_path / "a.pth"

    def saved(change):
        state = state_of(detector)
        change(state)
        torch.save({"state_dict": state}, path)
        return path

    refused(saved(lambda s: s.pop("neck.fpn_convs.1.conv.bias")), "1 missing: neck.fpn_convs.1.conv.bias")
    refused(saved(lambda s: s.update({"roi_head.extra.weight": torch.ones(2)})), "1 unexpected: roi_head.extra.weight")
    refused(
        saved(lambda s: s.update({"rpn_head.rpn_cls.weight": torch.ones(2, 2)})), "rpn_head.rpn_cls.weight is (2, 2)"
    )
    refused(saved(lambda s: s.pop("roi_head.bbox_head.fc_cls.weight")), "roi_head.bbox_head.fc_cls.weight")
    refused(
        saved(lambda s: s.pop("backbone.layer3.2.conv2.conv_offset.bias")), "backbone.layer3.2.conv2.conv_offset.bias"
    )
    refused(saved(lambda s: [s.pop(k) for k in list(s) if "layer3.5." in k]), "ResNet-50")


def test_other_detectors_are_refused_by_what_is_in_them(tmp_path):
    torch.save({"state_dict": {"fc.weight": torch.ones(3, 3)}}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "no detector of MMDetection or Detectron2")
    torch.save(
        {"state_dict": {"neck.x": torch.ones(1), "roi_head.bbox_head.0.fc_cls.weight": torch.ones(1)}}, tmp_path / "b"
    )
    refused(tmp_path / "b", "expected a Faster or Mask R-CNN")
    torch.save([1, 2], tmp_path / "c.pth")
    refused(tmp_path / "c.pth", "holds a list")
    (tmp_path / "d.pth").write_bytes(b"<html>not found</html>")
    refused(tmp_path / "d.pth", "no checkpoint")


def test_a_file_cut_off_anywhere_is_refused(tmp_path, thin, random_rcnn):
    for legacy in (False, True):
        path = tmp_path / f"{legacy}.pth"
        torch.save({"state_dict": state_of(random_rcnn(thin()))}, path, _use_new_zipfile_serialization=not legacy)
        whole = path.read_bytes()
        for share in (0.001, 0.3, 0.99):
            path.write_bytes(whole[: int(share * len(whole))])
            refused(path)


def test_own_files_with_other_metadata_are_refused(tmp_path):
    from safetensors.torch import save_file

    for index, about in enumerate([{"architecture": "rcnn"}, {"architecture": "rcnn", "config": "[1]"}]):
        path = tmp_path / f"{index}.safetensors"
        save_file({"a": torch.ones(1)}, path, about)
        refused(path, "its configuration cannot be used")
