"""The system's Chromium, to look at the pages of planted fields. Browser tests skip where there is none."""

import os
import shutil
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

with install_import_hook("deformscope", "typechecker.check"):
    from deformscope.explorer import write

from planted import SIZE, planted

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    path = os.environ.get("DEFORMSCOPE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs a Chromium: none on the PATH, and DEFORMSCOPE_CHROMIUM is not set (apt install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory) -> dict[str, Path]:
    """The page of one planted photo, and of three."""
    folder = tmp_path_factory.mktemp("pages")
    return {
        "one": write(folder / "one.html", [planted()], ["planted.png"]),
        "three": write(folder / "three.html", [planted(), planted(1), planted(2)], ["a.png", "b.png", "c.png"]),
    }


class Watched:
    """A page in the browser with all that it asked for and complained of."""

    def __init__(self, page) -> None:
        self.page, self.requests, self.complaints = page, [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (self.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def open(self, path: Path, state: str = "") -> "Watched":
        """Open the file with a state in its hash, and wait for its photo."""
        self.page.goto("about:blank")
        self.page.goto(path.as_uri() + ("#" + state if state else ""))
        self.ready()
        return self

    def ready(self) -> None:
        """Wait until the photo and its field are drawn."""
        self.page.wait_for_selector("#legend .words", state="attached")
        self.frames()

    def frames(self, count: int = 3) -> None:
        """Let the browser draw."""
        self.page.evaluate(
            "n => new Promise(done => { const step = () => n-- > 0 ? requestAnimationFrame(step) : done(); step(); })",
            count,
        )

    def hash(self) -> str:
        """The URL's hash once the page has written it."""
        # In the page's own time, which is late with both timers or with neither.
        self.page.evaluate("() => new Promise(done => setTimeout(done, 300))")
        return self.page.evaluate("location.hash.slice(1)")

    def number(self, row: str, column: str = "here") -> list[float]:
        """A row of the table of numbers."""
        text = self.page.locator(f'td[data-row="{row}"][data-column="{column}"]').inner_text()
        for sign in (",", "·", "×"):
            text = text.replace(sign, " ")
        return [float(part.replace("−", "-")) for part in text.split()]

    def screen(self, y: float, x: float) -> tuple[float, float]:
        """Where a place of the photo, (y, x) px, is in the window, as it is fitted into the stage without zoom."""
        box = self.page.locator("#stage").bounding_box()
        margin = 20 if box["width"] > 640 else 0
        scale = min((box["width"] - 2 * margin) / SIZE[1], (box["height"] - 2 * margin) / SIZE[0])
        return (
            box["x"] + box["width"] / 2 + (x - SIZE[1] / 2) * scale,
            box["y"] + box["height"] / 2 + (y - SIZE[0] / 2) * scale,
        )

    def point(self, y: float, x: float) -> None:
        """Move the mouse to a place of the photo."""
        self.page.mouse.move(*self.screen(y, x))
        self.frames()

    def click(self, y: float, x: float) -> None:
        """Click a place of the photo."""
        self.page.mouse.click(*self.screen(y, x))
        self.frames()

    def slide(self, key: str, value: float) -> None:
        """Move a slider."""
        self.page.evaluate(
            "([id, value]) => { const input = document.getElementById(id); input.value = value;"
            " input.dispatchEvent(new Event('input', { bubbles: true })); }",
            [key, value],
        )
        self.frames()


@pytest.fixture
def watch(browser, request):
    """Make watched pages: by default a desktop without motion, in the dark."""
    contexts = []

    def make(**settings) -> Watched:
        usual = {"viewport": {"width": 1024, "height": 760}, "color_scheme": "dark", "reduced_motion": "reduce"}
        context = browser.new_context(**usual | settings)
        context.set_default_timeout(15_000)
        contexts.append(context)
        return Watched(context.new_page())

    yield make
    for context in contexts:
        context.close()
