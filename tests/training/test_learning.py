"""Schedules, parameter groups, modes: what the optimiser gets to see."""

import pytest
import torch

from deformscope.errors import DeformscopeError
from deformscope.training import networks
from deformscope.training.datamodule import SeededItems, source
from deformscope.training.learning import Learning, OffsetPenalty, parameter_groups, rate
from deformscope.training.order import Slot
from deformscope.training.reading import read
from deformscope.training.recipe import Optimiser
from deformscope.training.run import train
from deformscope.training.shapes import NAMES
from deformscope.training.sources import collate


def detector_of(recipe):
    return networks.build(recipe, NAMES)


def batch_of(recipe, detector, count=4):
    items = SeededItems(source(recipe, "train"), recipe, detector.prepare)
    return collate([items[Slot(0, place, place)] for place in range(count)])


def test_initial_weights_are_the_same_in_every_mode_and_differ_between_seeds(tiny):
    states = [detector_of(tiny(f"network.offset_mode={m}")).state_dict() for m in ("none", "feature", "kernel", "full")]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[key], states[0][key]) for key in state)
    other = detector_of(tiny("run.seed=1")).state_dict()
    assert not torch.equal(other["heads.stride8.deform.weight"], states[0]["heads.stride8.deform.weight"])


def test_building_a_network_leaves_the_random_state_alone(tiny):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    detector_of(tiny())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", ["none", "feature", "kernel", "full"])
def test_all_that_learns_gets_gradients_and_offsets_learn_in_all_modes_but_none(tiny, mode):
    recipe = tiny(f"network.offset_mode={mode}")
    detector = detector_of(recipe)
    sum(detector.losses(batch_of(recipe, detector)).values()).backward()
    learning = [(name, p) for name, p in detector.named_parameters() if p.requires_grad]
    assert all(parameter.grad is not None for _, parameter in learning)
    assert any("conv_offset" in name for name, _ in learning) == (mode != "none")


def test_offset_convolutions_have_their_own_rate(tiny):
    recipe = tiny("optimiser.offset_lr=0.1", "optimiser.lr=0.5")
    detector = detector_of(recipe)
    groups = {factor: parameters for parameters, factor in parameter_groups(detector, 0.1)}
    names = {id(p): name for name, p in detector.named_parameters()}
    assert {names[id(p)].split(".")[-2] for p in groups[0.1]} == {"conv_offset"}
    assert sum(map(len, groups.values())) == len(list(detector.parameters()))
    settings = Learning(recipe, detector, source(recipe, "val")).configure_optimizers()
    assert settings["optimizer"].param_groups[1]["lr"] == pytest.approx(
        0.1 * settings["optimizer"].param_groups[0]["lr"]
    )


@pytest.mark.parametrize("modulated", ["false", "true"])
def test_the_penalty_is_the_offsets_mean_square_of_each_layer(tiny, modulated):
    recipe = tiny(f"network.modulated={modulated}")
    detector = detector_of(recipe)
    penalty = OffsetPenalty(detector)
    expected = 0.0
    for number, head in enumerate(detector.heads.values()):
        torch.nn.init.zeros_(head.deform.conv_offset.weight)
        torch.nn.init.constant_(head.deform.conv_offset.bias, number + 1)
        with torch.no_grad():
            head.deform.conv_offset.bias[18:] = 50  # modulation costs nothing
        expected += (number + 1) ** 2
    batch = batch_of(recipe, detector)
    detector.losses(batch)
    taken = penalty.take()
    assert taken.item() == pytest.approx(expected)
    taken.backward()
    assert detector.heads["stride8"].deform.conv_offset.bias.grad[:18] == pytest.approx(
        torch.full((18,), 2 / 18), rel=1e-4
    )
    with torch.no_grad():
        detector.losses(batch)
    assert penalty.take().item() == 0


def test_patterns_freeze_parameters(tiny):
    detector = detector_of(tiny("network.freeze=[trunk.layers.0.*]"))
    frozen = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    assert frozen
    assert all(name.startswith("trunk.layers.0.") for name in frozen)
    with pytest.raises(DeformscopeError, match=r"network\.freeze: 'trunc\.\*' fits no parameter"):
        detector_of(tiny("network.freeze=['trunc.*']"))


def test_the_multi_step_schedule_is_mmdetections():
    settings = Optimiser(warmup=500, warmup_start=0.001, milestones=(1000, 1500), schedule="multi_step")
    # mmcv: warmup_lr = lr · (1 − (1 − iteration / warmup) · (1 − ratio))
    for step in (0, 1, 250, 499):
        assert rate(settings, step) == pytest.approx(1 - (1 - step / 500) * (1 - 0.001))
    assert [rate(settings, step) for step in (500, 999, 1000, 1499, 1500)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_bfloat16_autocast_trains_close_to_float32(tiny):
    recipe = tiny()
    detector = detector_of(recipe)
    for head in detector.heads.values():
        torch.nn.init.normal_(head.deform.conv_offset.weight, std=0.02)
    batch = batch_of(recipe, detector)
    exact = sum(detector.losses(batch).values())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = sum(detector.losses(batch).values())
    rounded.backward()
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters())
    assert detector.heads["stride8"].deform.conv_offset.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "overrides",
    [
        ("run.precision=bf16", "run.ema=0.9", "run.evaluate_every=4"),
        ("optimiser.kind=sgd", "optimiser.schedule=multi_step", "optimiser.milestones=[6]", "optimiser.lr=0.01"),
        ("data.views=[whole, crop, mosaic]", "data.canvas=[64, 96]", "data.copy_paste=0.5", "network.modulated=true"),
        ("data.workers=2",),
    ],
)
def test_variants_train_to_a_finite_result(tiny, tmp_path, overrides):
    recipe = tiny(*overrides)
    result = train(recipe, tmp_path / "run", progress=False)
    assert result.steps == 12
    assert 0 <= result.scores["ap"] <= 100
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 6
    assert (tmp_path / "run" / "best.ckpt").exists() == ("run.evaluate_every=4" in overrides)


def test_two_stage_detectors_learn_from_a_coco_folder(coco):
    coco(split="val")
    overrides = [f"data.folder={coco()}", "data.train=train", "data.val=val", "network.weights=null", "data.batch=2"]
    recipe = read("table1_coco/mask_kernel", [*overrides, "run.devices=1"])
    photos = source(recipe, "train")
    assert len(photos) == 2
    detector = networks.build(recipe, photos.names)
    items = SeededItems(photos, recipe, detector.prepare)
    sides = {items[Slot(0, 0, 0)].image.shape[1:]}
    assert sides == {(800, 1088)}  # 60×80 to 800×1067, padded to 32
    small = read("table1_coco/mask_kernel", [*overrides, "run.devices=1", "data.shorter_sides=[96]"])
    items = SeededItems(photos, small, detector.prepare)
    batch = collate([items[Slot(0, place, place)] for place in (0, 1)])
    losses = detector.losses(batch)
    assert "loss_mask" in losses
    sum(losses.values()).backward()
    offsets = [p for name, p in detector.named_parameters() if "conv_offset.weight" in name]
    assert len(offsets) == 13
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in offsets)


def test_dense_detectors_learn_at_several_sizes(tiny):
    recipe = tiny("network.architecture=dense", "data.shorter_sides=[64, 128]")
    detector = networks.build(recipe, NAMES)
    items = SeededItems(source(recipe, "train"), recipe, detector.prepare)
    shapes = {tuple(items[Slot(0, index, index)].image.shape[1:]) for index in range(12)}
    assert len(shapes) == 1  # the data's own longer side, 96 px, bounds 128 × 192
    wider = tiny("network.architecture=dense", "data.shorter_sides=[32, 64]")
    items = SeededItems(source(wider, "train"), wider, detector.prepare)
    assert {tuple(items[Slot(0, index, index)].image.shape[1:]) for index in range(12)} == {(32, 64), (64, 96)}


@pytest.mark.parametrize("weights", ["packaged", "nowhere.pth"])
def test_weights_that_do_not_fit_the_trunk_are_named_by_their_key(tiny, weights):
    architecture = "small" if weights == "packaged" else "dense"
    with pytest.raises(DeformscopeError, match=rf"network\.weights='{weights}'") as error:
        networks.build(tiny(f"network.architecture={architecture}", f"network.weights={weights}"), NAMES)
    assert "\n" not in str(error.value)
