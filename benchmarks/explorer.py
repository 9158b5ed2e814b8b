"""Size and speed of the explorer's page of a 1333×800 photo with 13 layers of ResNet-50, in the real browser.

    python benchmarks/explorer.py [--rounds 9]

Needs Playwright and a Chromium (DEFORMSCOPE_CHROMIUM, or one on the PATH). Prints megabytes, milliseconds to the first
paint and until photo and field are drawn, and the milliseconds of work that a hover takes before the browser may
present the frame, at one to three layers deep.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

# The fields that the tests use too.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "explorer"))

from resnet_layers import resnet50_analysis

from deformscope.explorer import write

FRAME = 1000 / 60
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
TIMED_FRAMES = """
window.spent = [];
const ask = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (draw) => ask((now) => {
  const began = performance.now();
  draw(now);
  window.spent.push(performance.now() - began);
});
"""
PAINTS = """() => [
  performance.getEntriesByName("first-contentful-paint")[0].startTime,
  performance.getEntriesByName("photo drawn")[0].startTime,
]"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="how often the page is opened")
    rounds = parser.parse_args().rounds
    from playwright.sync_api import sync_playwright

    path = os.environ.get("DEFORMSCOPE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise SystemExit("no Chromium found; install one, or set DEFORMSCOPE_CHROMIUM")
    analysis = resnet50_analysis()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        began = time.perf_counter()
        file = write(Path(folder) / "page.html", [analysis], ["photo.jpg"])
        written = time.perf_counter() - began
        print(f"page: {file.stat().st_size / 1e6:.2f} MB, written in {written:.1f} s")
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        print(f"Chromium {browser.version}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        paints, hovers = [], {depth: [] for depth in (1, 2, 3)}
        for _ in range(rounds):
            # A context of its own each: nothing is kept from one round to the next.
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            page = context.new_page()
            page.add_init_script(TIMED_FRAMES)
            page.goto(f"{file.as_uri()}#layer=backbone.layer4.2.conv2")
            page.wait_for_selector("#legend .words", state="attached")
            paints.append(page.evaluate(PAINTS))
            for depth, spent in hovers.items():
                page.locator(f"input[name=depth][value='{depth}']").check()
                page.wait_for_timeout(400)
                page.evaluate("spent.length = 0")
                for step in range(30):
                    page.mouse.move(60 + 28 * step, 200 + 13 * step)
                page.wait_for_timeout(50)
                spent += page.evaluate("spent")
            context.close()
        browser.close()
    for name, values in zip(("first paint", "photo and field drawn"), zip(*paints, strict=True), strict=True):
        print(f"{name}: median {statistics.median(values):.0f} ms, worst {max(values):.0f} ms")
    for depth, spent in hovers.items():
        late = sum(one > FRAME for one in spent) / len(spent)
        ordered = sorted(spent)
        print(
            f"hover, {9**depth} points: median {statistics.median(spent):.2f} ms, 95 % below "
            f"{ordered[int(0.95 * len(ordered))]:.2f} ms, {100 * late:.1f} % above a frame ({len(spent)} frames)"
        )


if __name__ == "__main__":
    main()
