"""Runs over folders: names of files, work in processes, and the manifest."""

import json
import os
import warnings

import pytest
import torch

from deformscope import OffsetField
from deformscope.detectors.dense.config import DenseConfig
from deformscope.detectors.dense.dense import DenseDetector
from deformscope.draw import batch
from deformscope.draw.batch import MANIFEST, file_names, folder_names, in_processes
from deformscope.errors import DeformscopeError, DeformscopeWarning


def layers(*names):
    return [OffsetField.from_tensor(torch.zeros(1, 18, 2, 2), name=name) for name in names]


def test_file_names_have_no_dots_and_tell_layers_apart():
    names = file_names(
        layers("backbone.layer4.2.conv2", "backbone.layer4.2.conv2+layer4.1.conv2", "a.b", "a-b", "A+b", "a+b", "", "Ж")
    )
    assert names[:2] == ["backbone-layer4-2-conv2", "backbone-layer4-2-conv2-composed"]
    assert names[2:] == ["a-b", "a-b-2", "A-composed", "a-composed-2", "layer", "layer-2"]
    long = file_names(layers("block." * 60 + "one", "block." * 60 + "two"))
    assert len(set(long)) == 2 and max(map(len, long)) < 130


@pytest.mark.parametrize(
    ("photos", "expected"),
    [
        (["a/cat.jpg", "b/cat.png", "c/Cat.png"], ["cat", "cat-2", "Cat-3"]),
        (["cat-2.jpg", "cat.jpg", "b/cat.jpg"], ["cat-2", "cat", "cat-3"]),
        (["..png", "manifest.json.png", "b. .jpg"], ["photo", "manifest.json-2", "b"]),
    ],
)
def test_every_photo_has_a_folder_of_its_own(photos, expected, tmp_path):
    assert folder_names([tmp_path / photo for photo in photos], (MANIFEST,)) == expected


def doubled(number: int) -> int:
    warnings.warn(f"number {number}", DeformscopeWarning, stacklevel=1)
    return 2 * number


def lost(number: int) -> None:
    os._exit(number)


def test_results_come_in_the_order_of_tasks_and_warnings_with_them():
    with pytest.warns(DeformscopeWarning) as said:
        assert list(in_processes(doubled, range(5), jobs=2)) == [0, 2, 4, 6, 8]
    assert [str(one.message) for one in said] == [f"number {number}" for number in range(5)]


def test_a_lost_process_is_one_line():
    with pytest.raises(DeformscopeError, match="jobs=2: a process ended early, possibly for lack of memory"):
        list(in_processes(lost, [1, 1], jobs=2))


def test_what_cannot_be_sent_is_one_line():
    with pytest.raises(DeformscopeError, match=r"jobs=2: the work cannot be sent .*jobs=1"):
        list(in_processes(lambda number: number, [1, 2], jobs=2))


def test_the_manifest_of_a_run_that_is_broken_off_has_what_was_drawn(tmp_path, cat):
    detector = DenseDetector(DenseConfig(("cat",), channels=16, shorter_side=64, longer_side=96)).eval()
    run = batch.figures(detector, [cat, cat, cat], tmp_path / "out", batch.Settings(views=("figure3",), dpi=30))
    next(run)
    run.close()
    assert len(json.loads((tmp_path / "out" / "manifest.json").read_text())["photos"]) == 1
