"""Draw the figures of README.md and docs/ with the packaged detector, from a public-domain photo."""

from pathlib import Path

import skimage.data
from PIL import Image

from deformscope import analyse, draw, load

FIGURES = Path(__file__).parents[1] / "docs/figures"


def main() -> None:
    FIGURES.mkdir(exist_ok=True)
    analysis = analyse(load("packaged"), Path(skimage.data.__file__).parent / "chelsea.png")
    photo, fields = analysis.photo, list(analysis.fields.values())
    found = {"detection": analysis.detection, "class_names": analysis.class_names, "least": 0.4}
    middle = analysis.fields["heads.stride16.deform"]
    figures = {
        "figure1": draw.figure1(middle, photo),
        "figure2": draw.figure2(fields, photo, **found),
        "figure3": draw.figure3(fields[1:], photo),
        "sampling": draw.sampling(middle, photo, [(150, 215), (60, 395)]),
        "overview": draw.overview(fields, photo, **found, title=f"chelsea.png · {analysis.detector}"),
    }
    for name, figure in figures.items():
        path = draw.save(figure, FIGURES / f"{name}.png", dpi=100)
        Image.open(path).convert("RGB").save(path, optimize=True)  # smaller, and slower, than figures are saved at work
        print(path)


if __name__ == "__main__":
    main()
