"""The notebooks run from top to bottom; what they keep is small, whole and free of places on somebody's machine."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from pages import DOCS

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
MOST_BYTES = 600_000


def test_there_are_notebooks_for_a_start_for_own_models_and_for_the_claims():
    assert [path.stem for path in NOTEBOOKS] == ["claims", "own_model", "quick_start"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path):
    shutil.copytree(DOCS / "photos", tmp_path / "photos")
    (tmp_path / "notebooks").mkdir()
    place = {"metadata": {"path": str(tmp_path / "notebooks")}}
    NotebookClient(nbformat.read(path, as_version=4), timeout=None, resources=place).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_the_outputs_of_one_run_and_they_are_small(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES, f"{path.name}: {len(text)} bytes; run tools/run_notebooks.py"
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run tools/run_notebooks.py"
    assert not any(
        output["output_type"] in ("error", "stream") and output.get("name") == "stderr"
        for cell in cells
        for output in cell["outputs"]
    )
    words = re.sub(r'"image/\w+": "[^"]*"', "", text)
    assert not re.search(r"(?<![\w.])/(home|root|tmp|Users|work)/|[A-Z]:\\\\", words), (
        f"{path.name}: a path of somebody's machine"
    )
