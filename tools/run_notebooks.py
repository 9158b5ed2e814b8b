"""Execute the notebooks of docs/notebooks and keep their outputs, pictures as small JPEGs.

python tools/run_notebooks.py [NAME ...]
"""

import base64
import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = Path(__file__).parents[1] / "docs/notebooks"


def main() -> None:
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if len(sys.argv) == 1 or path.stem in sys.argv[1:]:
            path.write_text(nbformat.writes(small(executed(path)), indent=1) + "\n", encoding="utf-8")
            print(path)


def executed(path: Path) -> Any:
    """The notebook after a run in a copy of its folder, where what it writes stays."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "notebooks"
        place.mkdir()
        shutil.copytree(NOTEBOOKS.parent / "photos", Path(folder) / "photos")
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(place)}}).execute()
    return notebook


def small(notebook: Any) -> Any:
    """Pictures as JPEG, and nothing that changes from run to run."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                picture, held = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))), io.BytesIO()
                picture.convert("RGB").save(held, "JPEG", quality=80, optimize=True)
                data["image/jpeg"] = base64.b64encode(held.getvalue()).decode()
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    main()
