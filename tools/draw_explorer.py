"""Take the screenshots of docs/explorer.md: the page of three public-domain photos with the packaged detector."""

import io
import os
import shutil
import tempfile
from pathlib import Path

import skimage.data
from PIL import Image
from playwright.sync_api import sync_playwright

from deformscope import analyse, load
from deformscope.explorer import write

FIGURES = Path(__file__).parents[1] / "docs/figures"
PHOTOS = ("chelsea.png", "astronaut.png", "coffee.png")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
DESKTOP, PHONE = (1440, 900), (390, 844)
SHOTS = {
    "explorer-dark": (DESKTOP, "dark", "layer=heads.stride32.deform&div=-0.25&a=262,214", (0.36, 0.36)),
    "explorer-light": (
        DESKTOP,
        "light",
        "photo=1&view=circles&score=0.5&layer=heads.stride16.deform%2Bbefore.0&a=225,110&b=215,350",
        None,
    ),
    "explorer-phone-dark": (PHONE, "dark", "photo=1&score=0.5&layer=heads.stride16.deform&a=225,110", None),
}
"""Size of the window, colour scheme, state, and where the mouse is on the stage."""


def main() -> None:
    detector, folder = load("packaged"), Path(skimage.data.__file__).parent
    analyses = [analyse(detector, folder / name).with_composed() for name in PHOTOS]
    chromium = os.environ.get("DEFORMSCOPE_CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as driver:
        page = write(Path(place) / "page.html", analyses, PHOTOS)
        browser = driver.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        for name, (size, scheme, state, mouse) in SHOTS.items():
            view = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
            view.goto(f"{page.as_uri()}#{state}")
            view.wait_for_selector("#legend .words")
            if mouse:
                box = view.locator("#stage").bounding_box()
                view.mouse.move(box["x"] + mouse[0] * box["width"], box["y"] + mouse[1] * box["height"])
            view.wait_for_timeout(300)
            with Image.open(io.BytesIO(view.screenshot())) as image:
                image.convert("RGB").save(FIGURES / f"{name}.png", optimize=True)
            view.close()
            print(FIGURES / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
