"""Masks that GrabCut makes of annotated boxes before the training: made once, moved with the photo, never read."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import deformscope as ds
from deformscope.detectors import box_masks
from deformscope.errors import DeformscopeError
from deformscope.training import networks, sources
from deformscope.training.cache import CachedMaps, Views, cached, cached_masks
from deformscope.training.datamodule import source
from deformscope.training.order import Slot
from deformscope.training.run import train
from deformscope.training.sources import MadeOfBoxes, Source

MADE = ("network.masks=true", "network.mask_hidden=8", "data.mask_targets=grabcut")
SHORT = ("run.steps=6", "run.checkpoint_every=3", "run.log_every=1")
CACHED = ("network.architecture=dense", "data.views=[whole, crop]", "data.canvas=[64, 96]", "data.shapes.train=6")


def without_masks(records):
    for one in records["annotations"]:
        del one["segmentation"]


def test_masks_are_those_of_grab_cut_and_are_made_once(tiny, coco, monkeypatch):
    photos = source(tiny(*MADE, f"data.folder={coco(without_masks)}"), "train")
    assert isinstance(photos, MadeOfBoxes) and isinstance(photos, Source)
    calls = []
    monkeypatch.setattr(sources, "grab_cut", lambda *given: calls.append(1) or box_masks.grab_cut(*given))
    first, again = photos.load(0), photos.load(0)
    assert len(calls) == 2 and torch.equal(first.masks, again.masks)
    photo = np.ascontiguousarray(first.image.permute(1, 2, 0).numpy())
    for mask, box in zip(first.masks.numpy(), first.boxes.tolist(), strict=True):
        assert np.array_equal(mask, box_masks.grab_cut(photo, box))
    assert photos.load(2).masks.shape == (0, 64, 64)


def test_a_run_learns_them_from_boxes_alone_and_goes_on_as_one_that_was_not_broken_off(tiny, coco, tmp_path):
    recipe = tiny(*MADE, *SHORT, f"data.folder={coco(without_masks)}", "data.val=train")
    train(recipe, tmp_path / "run", progress=False)
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert log[-1]["loss_made"] > 0 and log[-1]["loss_outside"] > 0
    assert ds.load(tmp_path / "run/detector.safetensors").config.mask_hidden == 8
    train(replace(recipe, run=replace(recipe.run, steps=6)), tmp_path / "run", progress=False)


def test_annotated_masks_are_learned_only_where_they_are_asked_for(tiny):
    annotated = source(tiny(*MADE, "data.mask_targets=annotated"), "train").load(0)
    made = source(tiny(*MADE), "train").load(0)
    assert torch.equal(annotated.boxes, made.boxes) and not torch.equal(annotated.masks, made.masks)
    assert not isinstance(source(tiny(*MADE), "val"), MadeOfBoxes)


def test_cached_masks_are_those_of_the_views_and_the_maps_are_shared_with_runs_without_them(tiny, tmp_path):
    recipe = tiny(*MADE, *CACHED, f"data.cache={tmp_path / 'cache'}")
    photos = source(recipe, "train")
    detector = networks.build(recipe, photos.names)
    maps, masks = cached(detector, photos, recipe.data, 0), cached_masks(detector, photos, recipe.data, 0)
    plain = tiny(*CACHED, f"data.cache={tmp_path / 'cache'}")
    assert cached(detector, source(plain, "train"), plain.data, 0) == maps
    annotated = replace(recipe.data, mask_targets="annotated")
    other = cached_masks(detector, source(replace(recipe, data=annotated), "train"), annotated, 0)
    kept, views = CachedMaps(maps, masks=masks), Views(photos, recipe.data, detector.prepare, masks=True)
    for index in (1, 9):
        target, expected = kept[Slot(0, 0, index)].target, views[index].target
        assert set(target) == set(expected) == {"boxes", "labels", "ignore", "masks"}
        assert all(torch.equal(target[key], expected[key]) for key in target)
    assert other != masks
    train(replace(recipe, run=replace(recipe.run, steps=4, checkpoint_every=4)), tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.mask_targets=grabcut",), "data.mask_targets: 'grabcut'; small learns no masks"),
        (("data.mask_targets=grabcuts",), "data.mask_targets: 'grabcuts'.*grabcut"),
        (("network.masks=true",), "data.mask_targets: None; masks are learned from grabcut or annotated ones"),
        (("network.mask_terms=[unary, dynamic]",), "network.mask_terms: of small and dense with masks=true"),
        (("network.mask_hidden=8",), "network.mask_hidden=8: there are no masks"),
        ((*MADE, "network.mask_terms=[]"), r"mask_hidden=8: there are no masks"),
        ((*MADE, "network.mask_hidden=12"), "network.mask_hidden=12: expected a multiple of 8"),
    ],
)
def test_recipes_that_cannot_be_are_one_clear_line(tiny, overrides, message):
    with pytest.raises(DeformscopeError, match=message):
        tiny(*overrides)


def test_opencv_is_asked_for_before_anything_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DeformscopeError, match="GrabCut needs OpenCV"):
        train(tiny(*MADE), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_begins_with_another_detectors_weights(tiny, tmp_path):
    train(tiny("run.steps=3", "run.checkpoint_every=3"), tmp_path / "first", progress=False)
    file = tmp_path / "first/detector.safetensors"
    first = ds.load(file)
    recipe = tiny(*MADE, *SHORT, f"network.start={file}")
    begun = networks.build(recipe, first.class_names)
    for name, value in first.state_dict().items():
        assert torch.equal(begun.state_dict()[name], value), name
    renamed = networks.build(recipe, ("other", *first.class_names))
    assert torch.equal(renamed.heads["stride8"].cls.weight[1], first.heads["stride8"].cls.weight[0])
    with pytest.raises(DeformscopeError, match=r"network\.start=.*knows none of the classes"):
        networks.build(recipe, ("others",))
    with pytest.raises(DeformscopeError, match=r"network\.start=.*does not fit this network"):
        networks.build(tiny(*MADE, *SHORT, f"network.start={file}", "network.channels=32"), first.class_names)
    with pytest.raises(DeformscopeError, match=r"network\.start='nowhere'"):
        networks.build(tiny(*MADE, *SHORT, "network.start=nowhere"), first.class_names)


def test_masks_asked_for_without_masks_are_one_clear_line_before_training(tiny, coco, tmp_path):
    overrides = ("network.architecture=dense_rcnn", "network.masks=true", f"data.folder={coco(without_masks)}")
    with pytest.raises(DeformscopeError, match="segmentation"):
        train(tiny(*overrides, "data.val=train"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
