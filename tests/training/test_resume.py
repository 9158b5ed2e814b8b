"""Broken off by kill -9 at any moment, the same command ends with the same numbers."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from deformscope.errors import DeformscopeError
from deformscope.training.ablation import ablate
from deformscope.training.reading import read
from deformscope.training.report import write
from deformscope.training.run import load, train
from deformscope.training.run_folder import kept_recipe


def ablation(folder: Path, overrides) -> None:
    write(ablate(read("shapes", overrides), folder, modes=["none", "full"], seeds=1, progress=False), folder)


def start(folder: Path, overrides) -> subprocess.Popen:
    command = "import sys, pathlib, test_resume as test; test.ablation(pathlib.Path(sys.argv[1]), sys.argv[2:])"
    return subprocess.Popen(
        [sys.executable, "-c", command, str(folder), *overrides],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )


def curve(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def kill_once(process: subprocess.Popen, ready) -> None:
    """Kill -9 as soon as ``ready()``, which must happen before the process ends."""
    end = time.monotonic() + 240
    while not ready():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


KILLED = ("run.steps=30", "run.checkpoint_every=4", "run.log_every=3", "run.ema=0.9", "data.flip=0.5")


def logged(folder: Path, steps: int):
    return lambda: (folder / "log.jsonl").exists() and (folder / "log.jsonl").read_text().count("\n") >= steps


def test_a_killed_run_gives_the_unbroken_numbers(tiny_overrides, tmp_path):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    kill_once(start(broken, [*tiny_overrides, *KILLED]), logged(broken / "none-seed0", 4))  # after step 12
    recipe = read("shapes", [*tiny_overrides, *KILLED, "network.offset_mode=none"])
    found, expected = (train(recipe, folder, progress=False) for folder in (broken / "none-seed0", whole))
    assert [line["step"] for line in curve(whole)] == list(range(3, 31, 3))
    assert curve(broken / "none-seed0") == curve(whole)
    assert found.scores == expected.scores


@pytest.mark.slow
def test_an_ablation_killed_in_each_of_its_runs_gives_the_unbroken_numbers(tiny_overrides, tmp_path):
    overrides, broken, whole = [*tiny_overrides, *KILLED], tmp_path / "broken", tmp_path / "whole"
    for mode, steps in (("none", 4), ("none", 7), ("full", 2)):
        kill_once(start(broken, overrides), logged(broken / f"{mode}-seed0", steps))
    done = (broken / "none-seed0" / "result.json").stat().st_mtime_ns
    ablation(broken, overrides)
    assert (broken / "none-seed0" / "result.json").stat().st_mtime_ns == done  # what is finished is not done again
    ablation(whole, overrides)
    for run in ("none-seed0", "full-seed0"):
        assert curve(broken / run) == curve(whole / run)
    tables = [json.loads((folder / "ablation.json").read_text()) for folder in (broken, whole)]
    assert tables[0]["summaries"] == tables[1]["summaries"]


def test_a_run_killed_between_its_last_step_and_its_result_is_only_evaluated_again(tiny, tmp_path):
    recipe = tiny("run.ema=0.8")
    first = train(recipe, tmp_path, progress=False)
    (tmp_path / "result.json").unlink()
    before = (tmp_path / "last.ckpt").stat().st_mtime_ns
    again = train(recipe, tmp_path, progress=False)
    assert again.scores == first.scores
    assert (tmp_path / "last.ckpt").stat().st_mtime_ns == before


def test_modes_and_seeds_see_the_same_data(tiny, tmp_path):
    recipe = tiny("run.steps=4", "run.log_every=1", "run.checkpoint_every=4")
    lines = []
    one = ablate(recipe, tmp_path / "a", modes=["full", "none"], seeds=2, progress=False, report=lines.append)
    assert [(r.offset_mode, r.seed) for r in one] == [("none", 0), ("full", 0), ("none", 1), ("full", 1)]
    assert len(lines) == 4
    first = {name: curve(tmp_path / "a" / name)[0]["loss"] for name in ("none-seed0", "full-seed0", "none-seed1")}
    # Offsets start at zero: the first loss is that of a plain convolution on the same photos.
    assert first["none-seed0"] == pytest.approx(first["full-seed0"], rel=1e-5)
    assert first["none-seed0"] != pytest.approx(first["none-seed1"], rel=1e-3)


@pytest.mark.slow
def test_results_do_not_depend_on_jobs(tiny, tmp_path):
    recipe = tiny("run.steps=4", "run.log_every=1", "run.checkpoint_every=4")
    for folder, jobs in (("a", 1), ("b", 2)):
        ablate(recipe, tmp_path / folder, modes=["full", "none"], seeds=1, jobs=jobs, progress=False)
    for name in ("none-seed0", "full-seed0"):
        losses = [[line["loss"] for line in curve(tmp_path / folder / name)] for folder in ("a", "b")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # another number of threads


def test_a_folder_of_another_recipe_is_refused_and_the_difference_named(tiny, tmp_path):
    train(tiny(), tmp_path, progress=False)
    with pytest.raises(DeformscopeError, match=r"run\.steps is 12 there and 16 now"):
        train(tiny("run.steps=16"), tmp_path, progress=False)
    (tmp_path / "result.json").unlink()
    with pytest.raises(DeformscopeError, match=r"data\.batch is 4 there and 6 now"):
        train(tiny("data.batch=6"), tmp_path, progress=False)


def test_a_run_folder_without_keys_that_came_later_is_gone_on_with(tiny, tmp_path):
    """A fingerprint of then is no fingerprint of now."""
    recipe = tiny()
    trained = train(recipe, tmp_path, progress=False)
    kept = json.loads((tmp_path / "recipe.json").read_text())
    del kept["network"]["rois_per_image"], kept["network"]["masks"]
    (tmp_path / "recipe.json").write_text(json.dumps(kept))
    result = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps(result | {"fingerprint": "018ffe913babd05e"}))
    assert train(recipe, tmp_path, progress=False).scores == trained.scores
    assert load(tmp_path)[0] == recipe
    with pytest.raises(DeformscopeError, match=r"optimiser\.grad_clip_norm is 10\.0 there and 1\.0 now"):
        train(tiny("optimiser.grad_clip_norm=1", "run.log_every=1"), tmp_path, progress=False)


@pytest.mark.parametrize("content", ["[1]", '{"network": 3}', "null", "[" * 100_000, "{"])
def test_a_damaged_recipe_in_a_run_folder_is_one_line(content, tmp_path):
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(DeformscopeError, match=r"recipe\.json: no recipe of a run") as error:
        kept_recipe(tmp_path)
    assert "\n" not in str(error.value)


def test_a_recipe_that_does_not_fit_its_data_leaves_the_folder_to_the_mended_one(tiny, tmp_path):
    folder = tmp_path / "runs" / "first"
    with pytest.raises(DeformscopeError, match=r"evaluation\.classes: 'cat'"):
        train(tiny("evaluation.classes=[cat]"), folder, progress=False)
    assert not folder.exists()
    folder.mkdir()
    (folder / "notes.txt").touch()
    with pytest.raises(DeformscopeError, match=r"evaluation\.classes: 'cat'"):
        train(tiny("evaluation.classes=[cat]"), folder, progress=False)
    assert {file.name for file in folder.iterdir()} <= {"notes.txt", ".lock"}
    assert train(tiny(), folder, progress=False).steps == 12


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("accelerator", ["gpu", "abacus"])
def test_hardware_that_is_not_there_leaves_the_folder_as_it_was(tiny, tmp_path, accelerator):
    folder = tmp_path / "run"
    with pytest.raises(DeformscopeError, match=rf"run\.accelerator: '{accelerator}', .*no such hardware") as error:
        train(tiny(f"run.accelerator={accelerator}"), folder, progress=False)
    assert "\n" not in str(error.value)
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_named(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DeformscopeError, match=r"folder=.*file.run: cannot be used"):
        train(tiny(), tmp_path / "file" / "run", progress=False)


def test_two_commands_do_not_train_in_one_folder(tiny, tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(DeformscopeError, match="another command is training here"):
        train(tiny(), tmp_path, progress=False)


def test_a_damaged_checkpoint_is_one_line(tiny, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DeformscopeError, match=r"last\.ckpt: no checkpoint .* remove it to start again"):
        train(tiny(), tmp_path, progress=False)


@pytest.mark.parametrize("own", [True, False])
def test_a_cpu_without_bf16_of_its_own_is_warned_of(tiny, tmp_path, monkeypatch, own):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: own)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    recipe = tiny("run.precision=bf16")
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        train(recipe, tmp_path / "run", progress=False)
    slow = [str(one.message) for one in met if "slower than float32" in str(one.message)]
    assert len(slow) == (0 if own else 1)
