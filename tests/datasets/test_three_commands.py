"""The real commands take an odd folder to their end, and refuse a broken one in one line."""

import json

import pytest
import torch
from variants import REFUSED, ids, images, moved, objects


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small untrained detector with random offsets, in a file of its own."""
    from deformscope.detectors.dense.dense import DenseConfig, DenseDetector

    torch.manual_seed(0)
    detector = DenseDetector(DenseConfig(("cat", "dog"), channels=16, shorter_side=64, longer_side=96))
    for head in detector.heads.values():
        torch.nn.init.normal_(head.deform.conv_offset.weight, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    detector.save(path)
    return path


def commands(root, weights, out):
    """Score, evaluate and train on a folder."""
    train = ["network.channels=16", "data.batch=2", "optimiser.warmup=2", "run.steps=3", "run.checkpoint_every=3"]
    train += ["run.log_every=1", f"data.folder={root}", "data.train=val", "data.val=val", "evaluation.score=0.001"]
    return {
        "score": ["score", root, "--detector", weights, "--out", out / "score", "--workers", 0, "--no-crops"],
        "evaluate": ["evaluate", "--data", root, "--detector", weights],
        "train": ["train", "shapes", *train, "--out", out / "train"],
    }


def everything_odd(folder):
    ids(lambda i: f"photo {i}", lambda i: i, lambda i: f"c{i}")(folder)
    objects(bbox=lambda box: [str(v) for v in box], iscrowd=lambda crowd: crowd or None, area=None)(folder)
    images(height=str, width=str)(folder)
    moved("images/val")(folder)


@pytest.mark.parametrize("name", ["score", "evaluate", "train"])
def test_the_commands_take_an_odd_folder_to_their_end(folder, weights, tmp_path, command, name):
    everything_odd(folder)
    folder.write("utf-16")
    code, printed, complaints = command(*commands(folder.root, weights, tmp_path)[name])
    assert code == 0, complaints
    if name == "score":
        assert json.loads((tmp_path / "score" / "scores.json").read_text())["run"]["records"] == 4
    elif name == "evaluate":
        assert "AP by class" in printed
    else:
        assert json.loads((tmp_path / "train" / "result.json").read_text())["scores"]["ap"] is not None
        found = json.loads((tmp_path / "train" / "detections.json").read_text())
        assert {one["image_id"] for one in found} <= {f"photo {i}" for i in range(1, 5)}
        assert found


@pytest.mark.parametrize("name", ["score", "evaluate", "train"])
def test_the_commands_refuse_in_one_line_and_leave_nothing(folder, weights, tmp_path, command, name):
    change, words = REFUSED["box NaN"]
    change(folder)
    folder.write()
    code, printed, complaints = command(*commands(folder.root, weights, tmp_path)[name])
    assert (code, printed) == (2, "")
    assert complaints.startswith("deformscope: ") and complaints.count("\n") == 1
    assert words in complaints
    assert not (tmp_path / "score").exists() and not (tmp_path / "train").exists()
