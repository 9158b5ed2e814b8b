"""The public names: no module takes their place, and nothing heavy loaded before one is used."""

import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import deformscope


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_no_public_name_is_also_a_module_that_its_import_would_put_in_its_place():
    modules = {module.name for module in pkgutil.iter_modules(deformscope.__path__)}
    functions = {name for name in deformscope.__all__ if not isinstance(getattr(deformscope, name), ModuleType)}
    assert "explain" in functions and not functions & modules


def test_importing_the_package_and_its_command_line_loads_nothing_heavy():
    heavy = ("torch", "torchvision", "numpy", "matplotlib", "PIL", "scipy", "skimage", "safetensors", "jaxtyping")
    for name in ("deformscope", "deformscope.cli", "deformscope.files", "deformscope.terminal.progress"):
        assert run(f"import sys, {name}; print([m for m in {heavy} if m in sys.modules])") == "[]", name
    assert run("import sys, deformscope; print('rich' in sys.modules)") == "False"


def test_every_public_name_is_there_and_listed():
    for name in deformscope.__all__:
        assert getattr(deformscope, name) is not None
        assert name in dir(deformscope)
    assert {"fields", "ops", "detectors", "score"} <= set(dir(deformscope))
    assert deformscope.fields.viewpoint.split is deformscope.split
    with pytest.raises(AttributeError, match="no attribute 'offsets'"):
        deformscope.offsets  # noqa: B018
    assert run("from deformscope import *\nprint(callable(capture), callable(load), draw.__name__)") == (
        "True True deformscope.draw"
    )


def test_a_public_name_can_be_replaced_for_a_test(monkeypatch):
    monkeypatch.setattr(deformscope, "capture", "mine")
    assert deformscope.capture == "mine"
    monkeypatch.undo()
    assert callable(deformscope.capture)


@pytest.mark.parametrize(("given", "expected"), [(None, "passive"), ("active", "active")])
def test_the_command_lets_waiting_threads_sleep_unless_the_user_says_otherwise(given, expected):
    program = (
        "import os, sys; os.environ.pop('OMP_WAIT_POLICY', None)\n"
        + (f"os.environ['OMP_WAIT_POLICY'] = {given!r}\n" if given else "")
        + "sys.argv = ['deformscope', '--version']\nfrom deformscope import cli\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    assert run(program).splitlines()[-1] == f"{expected} False"


def test_the_room_of_photos_answers_in_a_fresh_process():
    code = "import deformscope as ds; assert ds.photo.read"
    subprocess.run([sys.executable, "-c", code], check=True)
