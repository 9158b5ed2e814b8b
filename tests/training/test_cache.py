"""The cache of a frozen trunk's maps gives what the trunk gives."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import deformscope
from deformscope.errors import DeformscopeError
from deformscope.training import cache as room, networks
from deformscope.training.cache import CachedMaps, Views, cached
from deformscope.training.datamodule import source
from deformscope.training.order import Slot
from deformscope.training.run import load, train
from deformscope.training.sources import collate

ONE_STAGE = (
    "network.architecture=dense",
    "network.channels=16",
    "data.views=[whole, crop]",
    "data.canvas=[64, 96]",
    "data.shapes.train=6",
    "run.steps=6",
    "run.checkpoint_every=3",
    "run.log_every=1",
)


@pytest.fixture
def recipe(tiny, tmp_path):
    return tiny(*ONE_STAGE, f"data.cache={tmp_path / 'cache'}")


def test_cached_maps_are_the_trunks_in_half_precision(recipe):
    photos = source(recipe, "train")
    detector = networks.build(recipe, photos.names)
    maps = CachedMaps(cached(detector, photos, recipe.data, workers=0))
    assert len(maps) == 12
    batch = collate([maps[Slot(0, 0, index)] for index in (1, 9)])
    views = Views(photos, recipe.data, detector.prepare)
    direct = collate([views[1], views[9]])
    for name, value in detector.trunk(direct.images).items():
        assert torch.allclose(batch.maps[name], value, rtol=2e-3, atol=2e-3)
    for kept, fresh in zip(batch.targets, direct.targets, strict=True):
        assert torch.equal(kept["boxes"], fresh["boxes"])
    assert [len(target["boxes"]) for target in batch.targets] != [0, 0]


GROWTH = """
import sys
import torch
from deformscope.training import cache
from deformscope.training.datamodule import source
from deformscope.training.reading import read
from deformscope.training import networks

def used():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) // 1024

torch.set_num_threads(1)
recipe = read("shapes", [*sys.argv[1:]])
photos = source(recipe, "train")
detector = networks.build(recipe, photos.names)
whole, memory = cache._parts, []

def watched(*arguments):
    for part in whole(*arguments):
        memory.append(used())
        yield part

cache._parts = watched
cache.cached(detector, photos, recipe.data, workers=1)
print(memory[-1] - memory[3])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_memory_of_making_the_cache_does_not_grow_with_the_photos(tmp_path, tiny_overrides):
    """Of 14 more batches of 16 photos of 3 × 192 × 256, each 9 MiB. In another process: this one's heap has room."""
    settings = [
        *tiny_overrides,
        *ONE_STAGE,
        "data.canvas=[192, 256]",
        "data.shapes.size=[192, 256]",
        "data.shapes.train=288",
        "data.views=[whole]",
        f"data.cache={tmp_path}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, *settings], capture_output=True, text=True, check=True, timeout=600
    )
    assert int(done.stdout) < 63  # half of it


def test_training_from_the_cache_does_not_run_the_trunk_and_goes_on_exactly(recipe, tmp_path, monkeypatch):
    first = train(recipe, tmp_path / "run", progress=False)
    folders = list((tmp_path / "cache").iterdir())
    assert len(folders) == 1

    def fail(*args):
        raise AssertionError("the trunk ran")

    monkeypatch.setattr(room, "_make", fail)  # another run finds the maps
    again = train(recipe, tmp_path / "again", progress=False)
    assert again.scores == first.scores
    assert list((tmp_path / "cache").iterdir()) == folders


def test_what_was_trained_from_the_cache_is_a_detector_to_load(recipe, tmp_path):
    recipe = replace(recipe, run=replace(recipe.run, snapshots=(0, 2, 6)))
    train(recipe, tmp_path / "run", progress=False)
    _, trained = load(tmp_path / "run")
    loaded = deformscope.load(tmp_path / "run" / "detector.safetensors")
    assert loaded.config == trained.config
    photo = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected, found = trained([photo], min_score=0.0)[0], loaded([photo], min_score=0.0)[0]
    assert len(found["boxes"])
    assert torch.allclose(found["scores"], expected["scores"], atol=5e-3)  # the file holds half precision
    for name, value in trained.state_dict().items():
        assert torch.allclose(loaded.state_dict()[name].float(), value.float(), rtol=2e-3, atol=1e-4), name
    begun, early, last = (deformscope.load(tmp_path / "run" / f"step-{step}.safetensors") for step in (0, 2, 6))
    assert all(head.deform.conv_offset.weight.abs().max() == 0 for head in begun.heads.values())
    assert any(head.deform.conv_offset.weight.abs().max() > 0 for head in early.heads.values())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in last.state_dict().items())


def test_other_photos_views_or_weights_have_another_cache(recipe, tiny, tmp_path):
    photos = source(recipe, "train")
    detector = networks.build(recipe, photos.names)
    first = cached(detector, photos, recipe.data, workers=0)
    more = tiny(*ONE_STAGE, f"data.cache={tmp_path / 'cache'}", "data.shapes.train=5")
    assert cached(detector, source(more, "train"), more.data, workers=0) != first
    with torch.no_grad():
        next(detector.trunk.parameters()).add_(0.1)
    assert cached(detector, photos, recipe.data, workers=0) != first


def test_a_trunk_that_learns_cannot_be_cached(recipe, tiny, tmp_path):
    small = tiny("data.views=[whole]", "data.canvas=[64, 96]", f"data.cache={tmp_path / 'cache'}")
    photos = source(small, "train")
    with pytest.raises(DeformscopeError, match="no frozen trunk to cache"):
        cached(networks.build(small, photos.names), photos, small.data)
    assert not (tmp_path / "cache").exists()


def test_a_broken_off_cache_is_not_taken_for_a_whole_one(recipe, monkeypatch, tmp_path):
    photos = source(recipe, "train")
    detector = networks.build(recipe, photos.names)

    def broken(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room.torch, "save", broken)
        with pytest.raises(KeyboardInterrupt):
            cached(detector, photos, recipe.data, workers=0)
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(CachedMaps(cached(detector, photos, recipe.data, workers=0))) == 12


def test_masks_come_out_of_the_cache_as_they_went_in(recipe, tmp_path):
    masked = replace(recipe, network=replace(recipe.network, architecture="dense_rcnn", masks=True))
    photos = source(masked, "train")
    detector = networks.build(masked, photos.names)
    maps = CachedMaps(cached(detector, photos, masked.data, workers=0))
    views = Views(photos, masked.data, detector.prepare, masks=True)
    for index in range(len(views)):
        kept, fresh = maps[Slot(0, 0, index)].target, views[index].target
        assert kept["masks"].dtype == torch.bool
        assert torch.equal(kept["masks"], fresh["masks"])
        assert list(kept) == list(fresh)
    assert any(views[index].target["masks"].any() for index in range(len(views)))
    plain = replace(masked, network=replace(masked.network, masks=False))
    other = networks.build(plain, photos.names)
    assert cached(other, photos, plain.data, workers=0) != cached(detector, photos, masked.data, workers=0)


def test_a_mask_head_learns_from_the_cache_and_is_judged_by_its_masks(recipe, tmp_path):
    masked = replace(recipe, network=replace(recipe.network, architecture="dense_rcnn", masks=True))
    result = train(masked, tmp_path / "masked", progress=False)
    last = json.loads((tmp_path / "masked" / "log.jsonl").read_text().splitlines()[-1])
    assert {"loss_cls", "loss_box", "loss_iou", "loss_roi_cls", "loss_roi_box", "loss_roi_mask"} <= last.keys()
    assert {"ap", "mask_ap"} <= result.scores.keys()
    assert deformscope.load(tmp_path / "masked" / "detector.safetensors").config.masks
