"""Draw the figures of README.md and docs/ with the packaged detector, from public-domain photos.

python tools/draw_docs.py                        # what docs/gallery.md draws, the montage, and object queries
python tools/draw_docs.py --run runs/packaged    # the field as it grew too, from the run's step-N.safetensors
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import draw_queries
import numpy as np
import skimage.data
from markdown_it import MarkdownIt
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from deformscope import OffsetField, analyse, draw, load
from deformscope.analysis import Analysis
from deformscope.detectors.detector import Detector
from deformscope.fields.stack import DEEPEST, composed, upstream

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = DOCS / "figures"
CAT = Path(skimage.data.__file__).parent / "chelsea.png"

HEADING = 32
"""Height of a detector's name above its figures, px."""
LAYER, TRUNK_LAYER = "heads.stride16.deform", "trunk.features.13.conv.1.0"
GROWTH = (0, 300, 1000, 6000)
"""Steps after which the field is shown."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, help="folder of a training run with snapshots")
    arguments = parser.parse_args()
    FIGURES.mkdir(exist_ok=True)
    montage(load("packaged")).save(FIGURES / "montage.jpg", quality=85, optimize=True)
    montage(load("trunk"), TRUNK_LAYER).save(FIGURES / "montage_trunk.jpg", quality=85, optimize=True)
    beside().save(FIGURES / "guided.jpg", quality=85, optimize=True)
    print(FIGURES / "montage.jpg", FIGURES / "montage_trunk.jpg", FIGURES / "guided.jpg")
    if draw_queries.missing():
        print(f"left out: {FIGURES / 'queries.png'}: {draw_queries.missing()}")
    else:
        draw_queries.save(FIGURES / "queries.png")
        print(FIGURES / "queries.png")
    drawn = growth(arguments.run) if arguments.run else None
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where the page's code finds its photos and leaves its pictures
        shutil.copyfile(CAT, "cat.png")
        shutil.copyfile(DOCS / "photos" / "meadow.jpg", "meadow.jpg")
        names: dict[str, object] = {}
        for token in MarkdownIt("commonmark").parse((DOCS / "gallery.md").read_text(encoding="utf-8")):
            if token.type == "fence" and token.info == "python":
                exec(token.content, names)
        if drawn is not None:
            draw.save(drawn, "growth.png", dpi=100)
        for path in sorted(Path().glob("*.png")):
            if path.name != "cat.png":
                keep(path, FIGURES / path.name)
        os.chdir(DOCS)


def stacked(analysis: Analysis, name: str) -> list[OffsetField]:
    """The layers of a stack, lowest first, and the field that they make together."""
    fields = upstream(analysis.fields, name, DEEPEST)
    return [*fields, composed(fields)]


def montage(detector: Detector, layer: str = LAYER) -> Image.Image:
    """Figures 2 and 3 of one layer on public-domain photos: a cat whole, off centre, small, twice; a person, twice."""
    size = (450, 300)
    cat, astronaut, coffee = (
        Image.open(CAT.with_name(f"{name}.png")).convert("RGB") for name in ("chelsea", "astronaut", "coffee")
    )
    small, two = coffee.resize(size), coffee.resize(size)
    face = cat.crop((70, 0, 370, 300))
    small.paste(face.resize((150, 150)), (20, 130))
    for left, side in ((10, 200), (260, 180)):
        two.paste(face.resize((side, side)), (left, 60))
    photos = [
        cat.resize(size),
        cat.crop((150, 20, 450, 220)).resize(size),
        small,
        two,
        astronaut.crop((0, 0, 512, 341)).resize(size),
        astronaut.crop((100, 0, 370, 180)).resize(size),
    ]
    pairs = [_pair(detector, np.asarray(photo), layer) for photo in photos]
    width, height = pairs[0].size
    sheet = Image.new("RGB", (3 * width, 2 * height), "white")
    for place, picture in enumerate(pairs):
        sheet.paste(picture, (place % 3 * width, place // 3 * height))
    return sheet


def beside() -> Image.Image:
    """Figures 2 and 3 of `packaged` and `guided` on the same two photos."""
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 20)
    parts = []
    for photo in (DOCS / "photos" / "meadow.jpg", CAT):
        for name in ("packaged", "guided"):
            pair = _pair(load(name), np.asarray(Image.open(photo).convert("RGB")), LAYER)
            part = Image.new("RGB", (pair.width, pair.height + HEADING), "white")
            part.paste(pair, (0, HEADING))
            ImageDraw.Draw(part).text((8, 5), name, "black", font)
            parts.append(part)
    sheet = Image.new("RGB", (sum(part.width for part in parts), max(part.height for part in parts)), "white")
    for place, part in enumerate(parts):
        sheet.paste(part, (sum(other.width for other in parts[:place]), 0))
    return sheet


def _pair(detector: Detector, photo: np.ndarray, name: str) -> Image.Image:
    """Figure 2 above Figure 3."""
    analysis = analyse(detector, photo)
    found = {"detection": analysis.detection, "class_names": analysis.class_names, "min_score": 0.4}
    layer = stacked(analysis, name)[-1]
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for number, figure in (("2", draw.figure2(layer, photo, **found)), ("3", draw.figure3(layer, photo))):
            picture = Image.open(draw.save(figure, Path(folder) / f"{number}.png", dpi=75)).convert("RGB")
            parts.append(picture)
    pair = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), "white")
    pair.paste(parts[0], (0, 0))
    pair.paste(parts[1], (0, parts[0].height))
    return pair


def growth(run: Path) -> Figure:
    """The layer that shows most, on a person, at four snapshots of the run."""
    photo = np.asarray(Image.open(CAT.with_name("astronaut.png")).convert("RGB").crop((0, 0, 512, 341)))
    fields = {}
    for step in GROWTH:
        name = f"after {step:,} steps" if step else "before training"
        analysis = analyse(load(str(run / f"step-{step}.safetensors")), photo)
        fields[name] = stacked(analysis, LAYER)[-1]
    return draw.growth(fields, photo, title=f"{fields[name].name} as it learns")


def keep(drawn: Path, path: Path) -> None:
    """Smaller, and slower, than figures are saved at work."""
    Image.open(drawn).convert("RGB").save(path, optimize=True)
    print(path)


if __name__ == "__main__":
    main()
