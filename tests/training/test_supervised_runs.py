"""Supervision in recipes: what it does to a run, and what does not fit, before training starts."""

import json

import pytest
import torch

from deformscope.errors import DeformscopeError
from deformscope.training import networks
from deformscope.training.datamodule import source
from deformscope.training.run import load, train

TOLD = "optimiser.offset_supervision={weight: 2.0, loss: [centre, extent]}"


def curve(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_supervised_run_pulls_its_offsets_to_the_boxes(tiny, tmp_path):
    settings = ["run.steps=20", "run.checkpoint_every=20", "optimiser.warmup=4", "network.decode=D2", TOLD]
    train(tiny(*settings), tmp_path / "told", progress=False)
    losses = [line["loss_supervision"] for line in curve(tmp_path / "told")]
    assert losses[-1] < 0.8 * losses[0]
    recipe, detector = load(tmp_path / "told")
    assert recipe.network.decode == "D2" and detector.config.decode == "D2"


def test_a_broken_supervised_run_goes_on_as_if_it_had_not_been(tiny, tmp_path, monkeypatch):
    from deformscope.training.learning import Learning

    settings = [
        "optimiser.offset_supervision={weight: 0.5, schedule: decay, side_branch: true}", "network.decode=D2"
    ]  # fmt: skip
    train(tiny(*settings), tmp_path / "whole", progress=False)
    step = Learning.training_step

    def breaking(self, batch, index):
        if self.global_step == 6:
            raise KeyboardInterrupt
        return step(self, batch, index)

    monkeypatch.setattr(Learning, "training_step", breaking)
    with pytest.raises(BaseException):  # noqa: B017, PT011  (Lightning exits)
        train(tiny(*settings), tmp_path / "broken", progress=False)
    monkeypatch.undo()
    train(tiny(*settings), tmp_path / "broken", progress=False)
    states = [torch.load(tmp_path / f / "last.ckpt", weights_only=True)["state_dict"] for f in ("whole", "broken")]
    assert any(key.startswith("side_branches.") for key in states[0])
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    load(tmp_path / "whole")  # which knows nothing of side branches


def test_each_level_is_told_of_the_boxes_that_it_predicts_and_stacks_as_one_field(tiny):
    recipe = tiny(TOLD, "network.deform_layers=2")
    detector = networks.build(recipe, ["object"])
    supervision = networks.supervised(recipe, detector, source(recipe, "train"))
    assert supervision.sizes == {
        "heads.stride8.deform": (0.0, 64.0),
        "heads.stride16.deform": (48.0, 140.0),
        "heads.stride32.deform": (110.0, float("inf")),
    }
    assert supervision._stacks["heads.stride16.deform"] == ["heads.stride16.before.0", "heads.stride16.deform"]
    assert detector.training
    upper = tiny("optimiser.offset_supervision={composed: 1}", "network.deform_layers=2")
    alone = networks.supervised(upper, networks.build(upper, ["object"]), source(recipe, "train"))
    assert alone._stacks["heads.stride16.deform"] == ["heads.stride16.deform"]


def test_the_control_gives_each_photo_the_boxes_of_the_next():
    boxes = [{"boxes": torch.full((1, 4), float(i)), "labels": torch.zeros(1)} for i in range(3)]
    assert [one["boxes"][0, 0].item() for one in networks.targets(boxes, shuffled=True)] == [1, 2, 0]
    assert [one["boxes"][0, 0].item() for one in networks.targets(boxes, shuffled=False)] == [0, 1, 2]
    assert all(set(one) == {"boxes"} for one in networks.targets(boxes, shuffled=False))


def test_the_tasks_gradient_is_scaled_where_boxes_are_decoded_too(tiny):
    recipe = tiny("network.decode=D2", "optimiser.offset_supervision={task_gradient: 0.1}")
    detector = networks.build(recipe, ["object"])
    networks.supervised(recipe, detector, source(recipe, "train"))
    assert [head.task_gradient for head in detector.heads.values()] == [0.1] * 3


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["network.decode=D7"], r"network.decode: 'D7'; did you mean 'D2'"),
        (["optimiser.offset_supervision={weight: -1}"], r"offset_supervision.weight: -1.0; expected at least 0"),
        (
            ["optimiser.offset_supervision={loss: [center]}"],
            r"offset_supervision.loss\[0\]: 'center'; did you mean 'cent",
        ),
        (["optimiser.offset_supervision={loss: []}"], r"offset_supervision.loss: \[\]; expected such as"),
        (["optimiser.offset_supervision={schedule_steps: 0}"], r"schedule_steps: 0; expected at least 1"),
        ([TOLD, "network.offset_mode=none"], r"network.offset_mode is 'none', there are no offsets"),
        (
            ["optimiser.offset_supervision={targets: shuffled}", "data.batch=1"],
            r"'shuffled' needs two photos a device; data.batch is 1",
        ),
        (["network.architecture=faster_rcnn_r50_fpn", "network.decode=D2"], r"network.decode: a setting of small"),
    ],
)
def test_what_does_not_fit_in_a_recipe_is_one_line(tiny, settings, line):
    with pytest.raises(DeformscopeError, match=line):
        tiny(*settings)


def test_a_pattern_without_a_match_stops_before_training_and_leaves_no_folder(tiny, tmp_path):
    recipe = tiny("optimiser.offset_supervision={layers: ['layer4*']}")
    with pytest.raises(DeformscopeError, match=r"layers: 'layer4\*' matches no deformable convolution; the model has"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_data_without_a_box_stop_before_training(coco, tiny, tmp_path):
    def without(records):
        records["annotations"] = []

    folder = coco(without)
    coco(without, split="val")
    recipe = tiny(f"data.folder={folder}", TOLD)
    with pytest.raises(DeformscopeError, match=r"offset_supervision: no photo has a box; expected annotated objects"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
