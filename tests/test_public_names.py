"""The public names: there in any order of imports, and nothing heavy loaded before one is used."""

import subprocess
import sys

import pytest
from fresh import run_each

import deformscope


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


ORDERS = (
    "import deformscope; deformscope.{name}; import deformscope.{name}.{module}",
    "import deformscope.{name}.{module}",
    "import deformscope; import deformscope.{name}",
    "from deformscope.{name} import {module}; import deformscope",
    "from deformscope import {name}, draw; import deformscope.{name}.{module}, deformscope",
)


def test_a_function_with_a_packages_name_stays_a_function_in_any_order_of_imports():
    after = (
        "\nfrom deformscope import explain as taken\nimport deformscope.explain.explain, sys\n"
        "inside = sys.modules['deformscope.explain.explain'].explain\n"
        "assert callable(deformscope.explain) and taken is deformscope.explain is inside\n"
        "assert sys.modules['deformscope.explain'].__path__\nprint('done')"
    )
    assert run_each([order.format(name="explain", module="explain") + after for order in ORDERS]) == ["done"] * len(
        ORDERS
    )


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
