"""Draw the figures of README.md and docs/ with the packaged detector, from public-domain photos.

python tools/draw_docs.py
python tools/draw_docs.py --run runs/packaged    # the field as it grew too, from the run's step-N.safetensors
"""

import argparse
from pathlib import Path

import skimage.data
from matplotlib.figure import Figure
from PIL import Image

from deformscope import analyse, draw, load

FIGURES = Path(__file__).parents[1] / "docs/figures"
CAT = Path(skimage.data.__file__).parent / "chelsea.png"


LAYER = "heads.stride16.deform"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, help="folder of a training run with snapshots")
    arguments = parser.parse_args()
    FIGURES.mkdir(exist_ok=True)
    detector = load("packaged")
    analysis = analyse(detector, CAT)
    photo, fields = analysis.photo, list(analysis.fields.values())
    found = {"detection": analysis.detection, "class_names": analysis.class_names, "least": 0.4}
    middle = analysis.fields[LAYER]
    figures = {
        "figure1": draw.figure1(middle, photo),
        "figure2": draw.figure2(fields, photo, **found),
        "figure3": draw.figure3(fields[1:], photo),
        "sampling": draw.sampling(middle, photo, [(150, 215), (60, 395)]),
        "overview": draw.overview(fields, photo, **found, title=f"chelsea.png · {analysis.detector}"),
    }
    if arguments.run:
        figures["growth"] = growth(arguments.run)
    for name, figure in figures.items():
        keep(figure, FIGURES / f"{name}.png")


def growth(run: Path) -> Figure:
    """The layer that shows most, at each snapshot of the run."""
    steps = sorted(int(path.stem.removeprefix("step-")) for path in run.glob("step-*.safetensors"))
    names = {step: f"after {step:,} steps" if step else "before training" for step in steps}
    fields = {names[step]: analyse(load(str(run / f"step-{step}.safetensors")), CAT).fields[LAYER] for step in steps}
    return draw.growth(fields, CAT, title=f"{LAYER} as it learns")


def keep(figure: Figure, path: Path) -> None:
    """Smaller, and slower, than figures are saved at work."""
    draw.save(figure, path, dpi=100)
    Image.open(path).convert("RGB").save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
