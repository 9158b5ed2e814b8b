"""Masks learned from boxes alone, by recipe: no mask is read, they are measured, and a run goes on exactly."""

import json
from dataclasses import replace

import pytest
import torch

import deformscope as ds
from deformscope.errors import DeformscopeError
from deformscope.training.data.cache import CachedMaps, cached, cached_colours
from deformscope.training.data.datamodule import source
from deformscope.training.data.order import Slot
from deformscope.training.data.sample import collate
from deformscope.training.run import networks
from deformscope.training.run.train import train

MASKS = ("network.masks=true", "run.steps=6", "run.checkpoint_every=3", "run.log_every=1")
CACHED = ("network.architecture=dense", "data.views=[whole, crop]", "data.canvas=[64, 96]", "data.shapes.train=6")


def test_a_run_learns_and_measures_masks_and_they_are_loaded(tiny, tmp_path):
    result = train(tiny(*MASKS), tmp_path / "run", progress=False)
    assert result.scores["mask_ap"] is not None
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    # The pairwise loss begins at zero.
    assert log[0]["loss_pairwise"] == 0 and log[-1]["loss_pairwise"] > 0 and log[0]["loss_projection"] > 0
    detector = ds.load(tmp_path / "run/detector.safetensors")
    assert detector.config.mask_terms == ("vote", "divergence", "unary")


def test_from_the_cache_colours_are_those_of_the_views(tiny, tmp_path):
    recipe = tiny(*MASKS, *CACHED, f"data.cache={tmp_path / 'cache'}")
    photos = source(recipe, "train")
    detector = networks.build(recipe, photos.names)
    maps = CachedMaps(cached(detector, photos, recipe.data, 0), cached_colours(detector, photos, recipe.data, 0))
    kept = collate([maps[Slot(0, 0, index)] for index in (1, 9)])
    assert kept.colours is not None and kept.colours.shape == (2, 3, 16, 24)
    from deformscope.training.data.cache import Views

    views = Views(photos, recipe.data, detector.prepare)
    images = collate([views[1], views[9]])
    torch.manual_seed(1)
    direct = detector.losses(images)
    torch.manual_seed(1)
    again = detector.losses(kept)
    for name in ("loss_projection", "loss_pairwise"):
        assert again[name].item() == pytest.approx(direct[name].item(), rel=0.05)
    first = train(recipe, tmp_path / "run", progress=False)
    other = train(replace(recipe, data=replace(recipe.data, cache=None)), tmp_path / "other", progress=False)
    assert first.steps == other.steps == 6


def test_boxes_alone_are_enough(tiny, coco, tmp_path):
    def without_masks(records):
        for one in records["annotations"]:
            del one["segmentation"]

    folder = coco(without_masks)
    recipe = tiny(*MASKS, f"data.folder={folder}", "data.val=train", "network.mask_terms=[vote, unary]")
    result = train(recipe, tmp_path / "run", progress=False)
    assert "ap" in result.scores and "mask_ap" not in result.scores


def test_a_run_begins_with_another_detectors_weights(tiny, tmp_path):
    train(tiny("run.steps=3", "run.checkpoint_every=3"), tmp_path / "first", progress=False)
    file = tmp_path / "first/detector.safetensors"
    first = ds.load(file)
    recipe = tiny(*MASKS, f"network.start={file}")
    begun = networks.build(recipe, first.class_names)
    for name, value in first.state_dict().items():
        assert torch.equal(begun.state_dict()[name], value), name
    renamed = networks.build(recipe, ("other", *first.class_names))
    assert torch.equal(renamed.heads["stride8"].cls.weight[1], first.heads["stride8"].cls.weight[0])
    with pytest.raises(DeformscopeError, match=r"network\.start=.*knows none of the classes"):
        networks.build(recipe, ("others",))
    with pytest.raises(DeformscopeError, match=r"network\.start=.*does not fit this network"):
        networks.build(tiny(*MASKS, f"network.start={file}", "network.channels=32"), first.class_names)
    with pytest.raises(DeformscopeError, match=r"network\.start='nowhere'"):
        networks.build(tiny(*MASKS, "network.start=nowhere"), first.class_names)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("network.mask_terms=[vote]",), "of small and dense with network.masks=true"),
        (("network.masks=true", "network.mask_terms=[]"), "expected at least one"),
        (("network.masks=true", "network.mask_terms=[vote, box]"), "one of 'vote' and 'box'"),
        (("network.masks=true", "network.offset_mode=none"), "'vote' is made of offsets"),
        (("network.masks=true", "network.architecture=faster_rcnn_r50_fpn"), "network.masks: a setting of small"),
    ],
)
def test_recipes_that_cannot_be_are_one_clear_line(tiny, overrides, message):
    with pytest.raises(DeformscopeError, match=message):
        tiny(*overrides)


def test_masks_asked_for_without_masks_are_one_clear_line_before_training(tiny, coco, tmp_path):
    def without_masks(records):
        for one in records["annotations"]:
            del one["segmentation"]

    overrides = ("network.architecture=dense_rcnn", "network.masks=true", f"data.folder={coco(without_masks)}")
    with pytest.raises(DeformscopeError, match="segmentation"):
        train(tiny(*overrides, "data.val=train"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
