"""Output that cannot be written: names beyond the console's encoding, readers that leave, full and closed streams."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

SOURCES = Path(__file__).parents[2] / "src"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs /dev and a POSIX shell")


@pytest.fixture
def shell(tmp_path):
    """Run a line of a POSIX shell in which ``$D`` is the command line; returns code, stdout and stderr as bytes."""

    def run(line, **environment):
        env = os.environ | {
            "PYTHONPATH": f"{SOURCES}{os.pathsep}{tmp_path}",
            "D": f"{sys.executable} -m deformscope.cli",
        }
        return subprocess.run(["sh", "-c", line], env=env | environment, cwd=tmp_path, capture_output=True, check=False)

    return run


@pytest.fixture
def broken_weights(weights, tmp_path):
    """A detector whose offsets are NaN, for which ``diagnose`` exits with 1."""
    import deformscope

    detector = deformscope.load(weights)
    for head in detector.heads.values():
        torch.nn.init.constant_(head.deform.conv_offset.bias, float("nan"))
    detector.save(tmp_path / "broken.safetensors")
    return tmp_path / "broken.safetensors"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_names_that_the_console_cannot_show_are_escaped(encoding, shell, weights, tmp_path):
    names = ["猫 Δ é.png", os.fsdecode(b"latin-\xe9.png")]
    for name in names:
        Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(tmp_path / name)
    settings = f"--view figure2 --detector {weights}"
    done = shell(f'$D figures "$ONE" "$OTHER" {settings}', ONE=names[0], OTHER=names[1], PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.decode(encoding).splitlines()) == 3


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_json_can_be_read_whatever_the_encoding(encoding, shell, weights, photo, tmp_path):
    (tmp_path / "chat é 猫 🐈.jpg").write_bytes(b"no photo")
    line = f"$D diagnose '{photo}' 'chat é 猫 🐈.jpg' --json --detector {weights}"
    done = shell(line, PYTHONIOENCODING=encoding)
    assert "chat é 猫 🐈.jpg" in json.loads(done.stdout.decode(encoding))["unreadable"][0]
    assert b"Traceback" not in done.stderr


def test_a_reader_that_leaves_early_is_no_error_and_changes_no_verdict(shell, broken_weights, photo):
    for command, code in (
        ("detectors", 0),
        ("--help", 0),
        (f"diagnose '{photo}'", 0),
        (f"diagnose '{photo}' --detector {broken_weights}", 1),
    ):
        done = shell(f"($D {command}; echo $? >code) | true; cat code")
        assert (int(done.stdout), done.stderr) == (code, b""), command


def test_files_are_written_though_nobody_reads_their_names(shell, weights, photo, tmp_path):
    done = shell(f"($D figures '{photo}' --detector {weights} --out out; echo $? >code) | true; cat code")
    assert (int(done.stdout), done.stderr) == (0, b"")
    assert (tmp_path / "out/manifest.json").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
@pytest.mark.parametrize("command", ["detectors", "--version", "diagnose '{photo}' --detector {broken}"])
def test_a_full_output_is_one_line_and_code_2(command, shell, broken_weights, photo):
    done = shell(f"$D {command.format(photo=photo, broken=broken_weights)} >/dev/full")
    assert done.returncode == 2
    assert (
        done.stderr.decode()
        == "deformscope: output: cannot be written (No space left on device); make room, or give another place\n"
    )


def test_with_closed_streams_the_work_is_done_and_the_code_counts(shell, broken_weights, photo):
    for detector, code in (("packaged", 0), (broken_weights, 1)):
        done = shell(f"$D diagnose '{photo}' --detector {detector} >&- 2>&-")
        assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
    done = shell("$D layers absent.jpg 2>&-")
    assert (done.returncode, done.stdout) == (2, b"")
    done = shell("$D layers absent.jpg 2>/dev/full")
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_fault_of_the_program_is_not_code_1(shell, photo, tmp_path):
    (tmp_path / "fault.py").write_text(
        "import deformscope\n\ndef load(*_, **__):\n    raise ZeroDivisionError\n\ndeformscope.load = load\n"
        "from deformscope.cli import main\nmain()\n"
    )
    done = shell(f"{sys.executable} fault.py diagnose '{photo}'")
    assert done.returncode == 70
    assert done.stderr.rstrip().endswith(b"ZeroDivisionError")
