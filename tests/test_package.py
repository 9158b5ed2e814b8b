"""The built wheel: what is in it, how large it is, and that it runs where nothing but its dependencies is installed."""

import os
import re
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import deformscope

tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, for building leaves files behind, and without a network."""
    pytest.importorskip("build")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if "Missing dependencies" in built.stdout + built.stderr:
        pytest.skip("needs setuptools ≥ 77 to build")
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (found,) = out.glob("*.whl")
    return found


def test_the_version_has_one_source():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "deformscope.__version__"}
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited and cited[1] == deformscope.__version__


def test_the_wheel_is_below_10_mb_and_holds_all_that_is_used_and_no_more(wheel):
    assert wheel.stat().st_size < 10e6
    assert f"-{deformscope.__version__}-py3-none-any" in wheel.name
    with zipfile.ZipFile(wheel) as content:
        names = {Path(name) for name in content.namelist()}
    own = {name for name in names if name.parts[0] == "deformscope"}
    source = ROOT / "src"
    expected = {path.relative_to(source) for path in (source / "deformscope").rglob("*") if path.is_file()}
    assert own == {path for path in expected if "__pycache__" not in path.parts}
    (metadata,) = {name.parts[0] for name in names - own}
    assert Path(metadata, "licenses/LICENSE") in names


def test_the_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as content:
        (name,) = (name for name in content.namelist() if name.endswith("/METADATA"))
        metadata = content.read(name).decode()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", metadata, re.MULTILINE))
    assert extras == set(project["optional-dependencies"])
    assert f"Version: {deformscope.__version__}\n" in metadata
    assert f"Requires-Python: {project['requires-python']}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "Project-URL: Paper, https://doi.org/" in metadata


@pytest.mark.slow
def test_the_wheel_runs_the_demo_in_an_environment_of_its_own(wheel, tmp_path):
    """Its dependencies are this environment's: they are gigabytes. An editable install of it is not seen from there."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=True, symlinks=os.name != "nt")
    scripts = home / ("Scripts" if os.name == "nt" else "bin")
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "DEFORMSCOPE"))}

    def run(*command: object, **settings) -> str:
        done = subprocess.run(
            [str(word) for word in command],
            env=own,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
            **settings,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    run(scripts / "pip", "install", "--no-deps", "--no-index", wheel)
    packages = run(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(packages, "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    where = run(scripts / "python", "-c", "import deformscope; print(deformscope.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(home)
    assert run(scripts / "deformscope", "--version", cwd=tmp_path).strip() == deformscope.__version__
    printed = run(scripts / "deformscope", "demo", "--out", "demo", cwd=tmp_path)
    assert "explore.html" in printed
    assert all((tmp_path / line).exists() for line in printed.splitlines())
