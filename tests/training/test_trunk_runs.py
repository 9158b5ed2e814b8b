"""Runs with a deformable trunk: the cache below the first trained block, rates, and going on after kill -9."""

from dataclasses import replace

import pytest
import torch

from deformscope.errors import DeformscopeError
from deformscope.training import networks
from deformscope.training.cache import CachedMaps, Views, cached
from deformscope.training.datamodule import source
from deformscope.training.learning import Learning
from deformscope.training.order import Slot
from deformscope.training.sources import collate

TRUNK = (
    "network.architecture=dense",
    "network.channels=16",
    "network.deform_layers=0",
    "network.weights=packaged",
    "network.trunk={deformable: [8, 9], cut: 9, levels: [8, 16]}",
    "optimiser.trunk_lr=0.1",
    "optimiser.offset_lr=0.2",
    "data.views=[whole, crop]",
    "data.canvas=[64, 96]",
    "data.shapes.train=6",
    "run.steps=6",
    "run.checkpoint_every=3",
    "run.log_every=1",
)


@pytest.fixture
def recipe(tiny, tmp_path):
    return tiny(*TRUNK, f"data.cache={tmp_path / 'cache'}")


def test_the_cache_holds_what_lies_below_the_first_trained_block(recipe):
    photos = source(recipe, "train")
    detector = networks.build(recipe, photos.names)
    maps = CachedMaps(cached(detector, photos, recipe.data, workers=0))
    item = maps[Slot(0, 0, 3)]
    assert {name: tuple(value.shape) for name, value in item.maps.items()} == {
        "stride8": (32, 8, 12),
        "block7": (64, 4, 6),
    }


def test_training_with_the_cache_and_without_is_the_same(recipe):
    """The same views in the same steps; the cache's half precision is all that differs."""
    photos = source(recipe, "train")
    detectors = [networks.build(recipe, photos.names) for _ in range(2)]
    maps = CachedMaps(cached(detectors[0], photos, recipe.data, workers=0))
    views = Views(photos, recipe.data, detectors[0].prepare)
    losses = []
    for detector, items in zip(detectors, (maps, views), strict=True):
        # Adam divides by a gradient's size, and makes of a rounded zero a whole step.
        optimiser = torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.02)
        own = []
        for step in range(4):
            batch = collate(
                [items[Slot(step, 0, i) if items is maps else i] for i in (step, step + 1, step + 6, step + 7)]
            )
            loss = torch.stack(list(detector.losses(batch).values())).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            own.append(loss.item())
        losses.append(own)
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert abs(losses[0][0] - losses[0][-1]) > 0.02 * losses[0][0]  # and it has learned
    begun = networks.build(recipe, photos.names).state_dict()
    for name, value in detectors[0].state_dict().items():
        moved = (value - begun[name]).float().norm()
        assert (value - detectors[1].state_dict()[name]).float().norm() <= 0.02 * moved + 1e-6, name


def test_arms_of_a_comparison_share_the_cache_and_other_blocks_have_another(recipe, tiny, tmp_path):
    photos = source(recipe, "train")
    folder = cached(networks.build(recipe, photos.names), photos, recipe.data, workers=0)
    for change in ("network.offset_mode=none", "run.seed=3", "network.trunk.pyramid=false"):
        other = tiny(*TRUNK, f"data.cache={tmp_path / 'cache'}", change)
        assert cached(networks.build(other, photos.names), photos, other.data, workers=0) == folder
    for change in ("network.trunk.thaw=7", "network.trunk.levels=[16]"):
        other = tiny(*TRUNK, f"data.cache={tmp_path / 'cache'}", change)
        assert cached(networks.build(other, photos.names), photos, other.data, workers=0) != folder


def test_trunk_offsets_and_the_rest_have_their_own_rates(recipe):
    photos = source(recipe, "train")
    learning = Learning(recipe, networks.build(recipe, photos.names), photos)
    names = {id(parameter): name for name, parameter in learning.named_parameters()}
    groups = learning.configure_optimizers()["optimizer"].param_groups
    rates = {names[id(p)]: group["max_lr"] / recipe.optimiser.lr for group in groups for p in group["params"]}
    assert len(rates) == sum(p.requires_grad for p in learning.parameters())
    for name, found in rates.items():
        expected = 0.2 if "conv_offset" in name else 0.1 if "trunk" in name else 1.0
        assert found == pytest.approx(expected), name
    assert {round(found, 6) for found in rates.values()} == {0.2, 0.1, 1.0}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network.trunk.blocks=3", r"network\.trunk\.blocks: no such key"),
        ("network.trunk.backbone=mobilenet_v3", r"network\.trunk\.backbone: 'mobilenet_v3'; did you mean 'mobilenet"),
        ("network.trunk.deformable=[12]", r"trunk\.deformable: \[12\]; .*1 to 9, where the trunk is cut"),
        ("network.trunk.deformable=9", r"network\.trunk\.deformable: 9; expected a list"),
        ("network.decode=D2", r"network\.decode='D2': with deform_layers=0 the heads have no offsets"),
        ("optimiser.trunk_lr=-1", r"optimiser\.trunk_lr: -1"),
        ("network.architecture=faster_rcnn_r50_fpn", r"network\.trunk: a setting of small, dense, dense_rcnn"),
    ],
)
def test_wrong_keys_are_told_in_one_line(tiny, override, message):
    with pytest.raises(DeformscopeError, match=message) as error:
        tiny(*TRUNK, override)
    assert "\n" not in str(error.value)


def test_a_trunk_trained_from_its_stem_has_no_cache(recipe, tmp_path):
    values = replace(recipe.network, trunk=replace(recipe.network.trunk, thaw=0))
    own = replace(recipe, network=values)
    photos = source(own, "train")
    with pytest.raises(DeformscopeError, match="no frozen trunk to cache"):
        cached(networks.build(own, photos.names), photos, own.data, workers=0)
