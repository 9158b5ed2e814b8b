"""Files and folders appear whole or not at all, and for whom the user's other files are."""

import json
import os
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from deformscope import DeformscopeError
from deformscope.files import whole_file, whole_folder, write_bytes, write_json, write_tensors, write_text

WRITERS = {
    "bytes": (lambda path: write_bytes(path, b"new"), b"new"),
    "text": (lambda path: write_text(path, "ä\r\n"), "ä\r\n".encode()),
    "json": (lambda path: write_json(path, {"a": [1, "ä"]}, indent=None), '{"a":[1,"ä"]}\n'.encode()),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_stands_there_alone(kind, tmp_path):
    write, content = WRITERS[kind]
    path = tmp_path / "folder" / "file"
    for _ in range(2):
        assert write(path) == path
        assert path.read_bytes() == content
        assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_tensors_come_back_with_their_metadata(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"a": torch.arange(3.0)}, {"format": "test"})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], torch.arange(3.0))


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_can_be_read_by_whom_the_users_other_files_can(umask, tmp_path):
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "tensors", {"a": torch.arange(3.0)}, {})
        write_text(tmp_path / "text", "text")
        with whole_folder(tmp_path / "folder") as beside:
            (beside / "inside").touch()
        (tmp_path / "other").touch()
        (tmp_path / "others").mkdir()
    finally:
        os.umask(before)

    def mode(name):
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    assert mode("tensors") == mode("text") == mode("folder/inside") == mode("other")
    assert mode("folder") == mode("others")


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("no such format"), KeyboardInterrupt()])
def test_what_breaks_off_leaves_the_old_content_and_nothing_else(error, tmp_path):
    path, folder = tmp_path / "file", tmp_path / "folder"
    path.write_text("old")
    wanted = DeformscopeError if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted), whole_file(path) as beside:
        beside.write_text("half")
        raise error
    with pytest.raises(type(error)), whole_folder(folder) as beside:
        (beside / "half").touch()
        raise error
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_file_that_cannot_be_moved_to_its_place_leaves_the_old_one_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(2)}, {})

    def fail(*paths):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(DeformscopeError, match=r"a\.safetensors: cannot be written \(No space left on device\)"):
            write_tensors(path, {"a": torch.ones(2)}, {})
    assert torch.equal(load_file(path)["a"], torch.zeros(2))
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with whole_file(path, durable=True) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_place_that_cannot_be_written_to_is_named_in_one_line(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path, reason in ((tmp_path / "folder", "a folder"), (tmp_path / "file" / "inside", "cannot be written")):
        with pytest.raises(DeformscopeError, match=reason) as caught:
            write_text(path, "text")
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to("real/file")
    write_text(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "real/file").read_text() == "new"


def test_what_is_no_regular_file_is_written_to_and_not_replaced(tmp_path):
    code = "from deformscope.files import write_text; write_text('/dev/stdout', 'text')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"text"
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    write_text(tmp_path / "pipe", "text")
    assert reader.communicate()[0] == b"text"
    assert (tmp_path / "pipe").is_fifo()


def test_names_as_long_as_the_system_takes_can_be_written(tmp_path):
    name = "ä" * 120 + ".png"
    write_text(tmp_path / name, "text")
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_text_that_is_no_utf_8_is_written_and_comes_back_from_json(tmp_path):
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    write_json(tmp_path / "a.json", {"path": name})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["path"] == name
    write_text(tmp_path / "a.txt", name)
    assert (tmp_path / "a.txt").read_bytes() == b"caf?.jpg"


def test_a_folder_that_another_process_made_meanwhile_stays(tmp_path):
    with whole_folder(tmp_path / "maps") as beside:
        (beside / "mine").touch()
        (tmp_path / "maps").mkdir()
        (tmp_path / "maps/theirs").touch()
    assert [file.name for file in tmp_path.rglob("*")] == ["maps", "theirs"]
