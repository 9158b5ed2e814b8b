"""Options of all commands: help, choices, devices, and flags named by the command line alone."""

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

import deformscope
from deformscope.cli import app

COMMANDS = tuple(name for name in app if not name.startswith("-"))


def options(name: str) -> set[str]:
    """The options of a command."""
    return {option for one in app[name].assemble_argument_collection() for option in one.names}


def test_every_command_that_runs_a_detector_has_a_device():
    runs = {name for name in COMMANDS if "--detector" in options(name)} - {"serve"}
    assert {name for name in COMMANDS if "--device" in options(name)} == runs


@pytest.mark.parametrize("name", [name for name in COMMANDS if "--device" in options(name)])
@pytest.mark.parametrize("device", ["cuda:99", "meta", "abacus"])
def test_a_device_that_is_not_there_is_one_line(name, device, command, photo, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    required = [one for one in app[name].assemble_argument_collection() if one.required]
    code, _, complaints = command(name, *[photo for _ in required], "--device", device)
    assert code == 2
    assert f'Invalid value "{device}" for --device. Not available here' in complaints
    assert complaints.count("\n") == 1
    assert set(tmp_path.iterdir()) == before


def test_the_commands_choices_are_the_librarys():
    from deformscope.cli import look
    from deformscope.draw import batch
    from deformscope.draw.sheet import FORMATS

    assert get_args(look.View) == batch.CHOICES
    assert get_args(look.Format) == tuple(FORMATS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_every_option_does(name, command):
    code, text, _ = command(name, "--help")
    assert code == 0
    for one in app[name].assemble_argument_collection():
        assert one.parameter.help, one.names
        assert one.names[0] in text


@pytest.mark.parametrize(
    ("tokens", "message", "shown"),
    [
        (["figures"], "cell_step=0: expected 1", "--cell-step 0: expected 1"),
        (["figures"], "views='x': expected figure1", "--view 'x': expected figure1"),
        (["ablate", "shapes"], "seeds=0, jobs=1: expected at least 1", "--seeds 0, --jobs 1: expected at least 1"),
        (["train", "shapes"], "folder=runs/a: cannot be used", "--out runs/a: cannot be used"),
        (["explain"], "at=(y=7, x=500): outside the photo", "--at 500,7: outside the photo"),
        (["figures"], "place (y, x) = (7.5, -2): outside the photo", "--at -2,7.5: outside the photo"),
        (["figures"], "composed=True: of attention", "--composed: of attention"),
        (["figures"], "images=[]: expected a photo", "images=[]: expected a photo"),
        (["train", "shapes"], "data.folder: 3; expected text", "data.folder: 3; expected text"),
        (["figures"], "photos/format=1.jpg: no such file", "photos/format=1.jpg: no such file"),
        ([], "format=1: expected", "format=1: expected"),
        (["nonsense"], "format=1: expected", "format=1: expected"),
    ],
)
def test_the_librarys_arguments_are_shown_as_the_commands_flags(tokens, message, shown):
    from deformscope.cli.app import in_flags

    assert in_flags(message, tokens) == shown


def test_only_the_command_line_names_flags():
    """Users of the library have arguments; flags in its errors would be another program's."""
    package = Path(deformscope.__file__).parent
    for file in package.rglob("*.py"):
        if "cli" in file.relative_to(package).parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Raise):
                texts = [
                    one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)
                ]
                assert not [text for text in texts if re.search(r"(?<!\w)--[a-z]", text)], (file, node.lineno)


def test_ctrl_c_is_code_130_and_at_most_a_line(command, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(deformscope, "load", interrupted)
    code, printed, complaints = command("layers")
    assert (code, printed) == (130, "") and complaints.count("\n") <= 1
