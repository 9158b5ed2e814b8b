"""Files of tensors: whole or not there, and for whom the user's other files are."""

import os
import stat

import pytest
import torch
from safetensors.torch import load_file

from deformscope.files import write


def test_a_file_can_be_read_by_whom_the_users_other_files_can(tmp_path):
    write({"a": torch.arange(3.0)}, tmp_path / "a.safetensors", {"format": "test"})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], torch.arange(3.0))
    (tmp_path / "other").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.safetensors", "other")]
    assert modes[0] == modes[1]


def test_a_file_that_cannot_be_finished_leaves_the_old_one_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write({"a": torch.zeros(2)}, path, {})

    def fail(*paths):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            write({"a": torch.ones(2)}, path, {})
    assert torch.equal(load_file(path)["a"], torch.zeros(2))
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
