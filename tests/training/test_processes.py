"""Several processes learn what one learns from the same photos (PyTorch's DDP over gloo, on the CPU)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deformscope.training.run import train

COMMAND = """
import sys
from pathlib import Path
from deformscope.training.reading import read
from deformscope.training.run import train
if __name__ == "__main__":
    train(read("shapes", sys.argv[2:]), Path(sys.argv[1]), progress=False)
"""
SETTINGS = (
    "run.steps=4",
    "run.log_every=1",
    "run.checkpoint_every=2",
    "optimiser.kind=sgd",
    "optimiser.lr=0.05",
    "optimiser.schedule=constant",
    "optimiser.grad_clip_norm=null",
)


def curve(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


TOLD = ("network.decode=D2", "optimiser.offset_supervision={weight: 0.5}")


@pytest.mark.parametrize(
    ("launcher", "mode", "more"),
    [pytest.param("torchrun", "none", (), marks=pytest.mark.slow), ("lightning", "full", TOLD)],
)
def test_two_processes_at_batch_b_learn_what_one_learns_at_batch_2b(
    tiny, tiny_overrides, tmp_path, monkeypatch, launcher, mode, more
):
    settings = [*SETTINGS, f"network.offset_mode={mode}", *more]
    one, two = tmp_path / "one", tmp_path / "two"
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [sys.executable, *(torchrun if launcher == "torchrun" else []), str(script), str(two)]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    subprocess.run([*command, *tiny_overrides, *settings, "run.devices=2"], check=True, timeout=300)
    single = train(tiny(*settings), one, progress=False)

    lines = list(zip(curve(one), curve(two), strict=True))
    assert len(lines) == 4
    for alone, together in lines:
        supervision = ("loss_supervision",) if more else ()
        for name in ("loss", "loss_cls", "loss_box", "loss_iou", "grad_norm", *supervision):
            rel = 1e-4 if name == "grad_norm" else 1e-5  # a norm over sums of float32 in another order
            assert together[name] == pytest.approx(alone[name], rel=rel), (name, alone["step"])
    weights = [torch.load(folder / "last.ckpt", weights_only=True)["state_dict"] for folder in (one, two)]
    begun = torch.load(one / "last.ckpt", weights_only=True)["state_dict"].keys()
    assert weights[1].keys() == begun
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], rtol=1e-5, atol=1e-6), name
    # Each process judged half of the photos; the AP is that of all.
    scores = json.loads((two / "result.json").read_text())["scores"]
    assert scores["ap"] == pytest.approx(single.scores["ap"], abs=1e-2)
