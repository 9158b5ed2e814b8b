"""The page in a real browser, worked with mouse, fingers, keyboard and links."""

import math
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from planted import PLACES, SIZE, planted_fields, planted_photo

from deformscope import Fields
from deformscope.analysis import Analysis
from deformscope.explorer import write

FIELDS = planted_fields()


def test_a_pinned_view_survives_a_reload_through_the_hash(watch, pages):
    seen = watch().open(pages["three"], "photo=1")
    seen.page.get_by_label("body.low").check()
    seen.page.get_by_label("Offset group").select_option("1")
    seen.slide("div", -0.25)
    seen.slide("opacity", 0.5)
    seen.page.get_by_label("2", exact=True).check()
    seen.click(*PLACES[0])
    seen.click(*PLACES[1])
    seen.page.mouse.move(5, 5)
    told = seen.hash()
    table = seen.page.locator("table.numbers").inner_text()
    picture = seen.page.locator("#stage").screenshot()
    assert "layer=body.low" in told and "group=1" in told and "photo=1" in told and "depth=2" in told
    seen.page.reload()
    seen.ready()
    assert seen.page.locator("h1").inner_text() == "b.png"
    assert seen.page.locator("table.numbers").inner_text() == table
    assert seen.page.locator("#area").inner_text() != ""
    assert seen.page.locator("#stage").screenshot() == picture
    assert seen.hash() == told
    fresh = watch().open(pages["three"], told)
    assert fresh.page.locator("table.numbers").inner_text() == table, "the link works elsewhere too"


def test_a_moving_particle_ends_as_the_still_one(watch, pages):
    seen = watch(reduced_motion="no-preference").open(pages["one"], "layer=body.middle&follow=1")
    seen.click(*PLACES[0])
    early = seen.page.evaluate("document.getElementById('marks').toDataURL()")
    seen.page.wait_for_function("early => document.getElementById('marks').toDataURL() !== early", arg=early)
    assert "came to rest" in seen.page.locator("#ended").inner_text()


def test_wheel_and_drag_and_keys_zoom_and_pan(watch, pages):
    seen = watch().open(pages["one"])
    seen.page.mouse.move(*seen.screen(*PLACES[1]))
    seen.frames()
    cell = seen.number("cell")
    seen.page.mouse.wheel(0, -600)
    seen.frames()
    told = dict(part.split("=") for part in seen.hash().split("&"))
    assert float(told["zoom"]) == pytest.approx(math.exp(0.96), rel=1e-3)
    x, y = seen.screen(*PLACES[1])
    seen.page.mouse.move(x + 1, y)
    seen.frames()
    assert seen.number("cell") == cell, "the place under the pointer stays under it"
    before = told["centre"]
    seen.page.mouse.down()
    seen.page.mouse.move(x + 81, y + 40, steps=4)
    seen.page.mouse.up()
    told = dict(part.split("=") for part in seen.hash().split("&"))
    assert told["centre"] != before and "a" not in told, "a drag pans and pins nothing"
    seen.page.keyboard.press("0")
    assert "zoom" not in seen.hash()
    seen.page.keyboard.press("+")
    seen.page.locator("#stage").focus()
    middle = dict(part.split("=") for part in seen.hash().split("&"))["centre"]
    seen.page.keyboard.press("Shift+ArrowRight")
    assert float(dict(part.split("=") for part in seen.hash().split("&"))["centre"].split(",")[0]) > float(
        middle.split(",")[0]
    )


def test_fingers_touch_pin_and_pinch(watch, pages):
    seen = watch(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True).open(pages["one"])
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 390, "nothing is wider than the phone"
    seen.page.touchscreen.tap(*seen.screen(*PLACES[0]))
    seen.frames()
    name = seen.page.locator("input[name=layer]:checked").get_attribute("value")
    assert seen.number("cell", "a") == list(FIELDS[name].cell_at(PLACES[0]))
    client = seen.page.context.new_cdp_session(seen.page)
    x, y = seen.screen(100, 156)

    def fingers(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": px, "y": py, "id": i} for i, (px, py) in enumerate(places)]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", (x - 20, y), (x + 20, y))
    for far in (25, 30, 35, 40):
        fingers("touchMove", (x - far, y), (x + far, y))
    fingers("touchEnd")
    told = dict(part.split("=") for part in seen.hash().split("&"))
    assert float(told["zoom"]) == pytest.approx(2, rel=0.1)
    assert "b" not in told
    assert not seen.complaints


def test_everything_can_be_done_from_the_keyboard(watch, pages):
    seen = watch().open(pages["three"], "layer=body.middle")

    def checked(name: str) -> str:
        return seen.page.locator(f"input[name={name}]:checked").get_attribute("value")

    seen.page.keyboard.press("2")
    seen.frames()
    assert checked("view") == "circles"
    seen.page.keyboard.press("]")
    seen.frames()
    assert checked("layer") == "body.top"
    seen.page.keyboard.press("d")
    seen.frames()
    assert checked("depth") == "2"
    seen.page.keyboard.press(".")
    seen.frames(6)
    assert seen.page.locator("h1").inner_text() == "b.png" and checked("layer") == "body.top"
    seen.page.locator("#stage").focus()
    seen.page.keyboard.press("ArrowRight")
    y, x = seen.number("cell")
    seen.page.keyboard.press("ArrowRight")
    seen.page.keyboard.press("ArrowDown")
    assert seen.number("cell") == [y + 1, x + 1]
    assert f"cell {int(y) + 1}, {int(x) + 1}" in seen.page.locator("#said").text_content(), "and it is said"
    seen.page.keyboard.press("Enter")
    seen.frames()
    assert seen.number("cell", "a") == [y + 1, x + 1]
    seen.page.keyboard.press("t")
    seen.frames()
    assert seen.page.evaluate("document.documentElement.dataset.theme") == "light"
    seen.page.keyboard.press("?")
    assert seen.page.locator("#help").is_visible()
    seen.page.keyboard.press("Escape")
    assert not seen.page.locator("#help").is_visible()
    for _ in range(60):
        seen.page.keyboard.press("Tab")
        if seen.page.evaluate("document.activeElement.id") == "div" or checked("view") == "flow":
            break
    assert seen.page.evaluate("document.activeElement !== document.body"), "Tab reaches the controls"


def test_the_view_is_saved_as_png_and_svg(watch, pages):
    seen = watch().open(pages["one"], "layer=body.low&view=circles&a=60,40")
    with seen.page.expect_download() as download:
        seen.page.get_by_label("Save the view as PNG").click()
    assert download.value.suggested_filename == "planted-body.low-circles.png"
    with Image.open(download.value.path()) as image:
        scale = (seen.screen(0, SIZE[1])[0] - seen.screen(0, 0)[0]) / SIZE[1]
        assert abs(image.width - 2 * scale * SIZE[1]) <= 2
        lines = (image.height / 2 - scale * SIZE[0] - 14) / 16
        assert 1 <= round(lines) <= 3 and abs(lines - round(lines)) < 0.2, "the photo's part, and the caption below"
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 500
    with seen.page.expect_download() as download:
        seen.page.get_by_label("Save the view as SVG").click()
    root = ElementTree.parse(download.value.path()).getroot()
    words = " ".join(node.text for node in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "circles of radius r of d_k" in words and "body.low" in words and "planted.png" in words
    seen.page.goto(f"file://{download.value.path()}")


def test_the_whole_caption_is_in_a_picture_that_is_narrower(watch, tmp_path):
    name = "transformer.encoder.layers.5." + "a_long_name_of_one_part" * 5
    fields = Fields({name: replace(FIELDS["body.low"], name=name)})
    path = write(tmp_path / "long.html", [Analysis(planted_photo(), fields)], ["long.png"], segments=[{}])
    seen = watch(viewport={"width": 390, "height": 844}).open(path, "view=circles")
    with seen.page.expect_download() as download:
        seen.page.get_by_label("Save the view as SVG").click()
    root = ElementTree.parse(download.value.path()).getroot()
    lines = [node for node in root.iter("{http://www.w3.org/2000/svg}text") if float(node.get("y")) > 220]
    assert len(lines) > 3
    assert seen.page.locator("#legend .words").inner_text().replace(" ", "") == "".join(
        line.text.replace(" ", "") for line in lines
    )
    assert float(lines[-1].get("y")) < float(root.get("height"))


def test_each_view_draws_something_of_its_own(watch, pages):
    seen = watch().open(pages["one"], "layer=body.low&boxes=0")
    pictures = set()
    for key in "12345":
        seen.page.keyboard.press(key)
        seen.frames()
        pictures.add(seen.page.locator("#base").screenshot())
    assert len(pictures) == 5
    seen.page.keyboard.press("3")
    for k in range(3):
        seen.page.locator("label.k").nth(k).click()
        seen.frames()
        pictures.add(seen.page.locator("#base").screenshot())
    assert len(pictures) == 7, "the first kernel point was shown already"
    seen.page.keyboard.press("]")
    seen.frames()
    assert seen.page.locator("input[value=modulation]").is_disabled(), "that layer has no modulation"
    assert not seen.complaints


def test_detections_are_switched_by_score_and_by_hand(watch, pages):
    seen = watch().open(pages["one"])
    assert seen.page.locator(".found li:visible").all_inner_texts() == ["dog\n0.91", "cat\n0.62"]
    both = seen.page.locator("#base").screenshot()
    seen.page.locator(".found input").nth(1).uncheck()
    seen.frames()
    one = seen.page.locator("#base").screenshot()
    assert one != both and "hide=1" in seen.hash()
    seen.slide("score", 0.95)
    assert seen.page.locator(".found li:visible").count() == 0
    seen.page.get_by_label("show").last.uncheck()
    seen.frames()
    assert "boxes=0" in seen.hash()


def test_hover_draws_the_kernel_alone(watch, pages):
    seen = watch()
    seen.page.add_init_script(
        "window.drawn = { base: 0, marks: 0, hover: 0 };"
        "for (const name of ['stroke', 'fill', 'drawImage', 'fillText', 'putImageData']) {"
        " const draw = CanvasRenderingContext2D.prototype[name];"
        " CanvasRenderingContext2D.prototype[name] = function (...given) {"
        "  drawn[this.canvas.id] += 1; return draw.apply(this, given); }; }"
    )
    seen.open(pages["one"], "layer=body.top&depth=3")
    whole = seen.page.evaluate("drawn")
    assert whole["base"] > 0
    for step in range(10):
        seen.page.mouse.move(*seen.screen(20 + 12 * step, 30 + 20 * step))
        seen.frames()
    after = seen.page.evaluate("drawn")
    assert (after["base"], after["marks"]) == (whole["base"], whole["marks"]), "the photo and the view stay"
    assert 0 < after["hover"] - whole["hover"] < 10 * 30
    seen.page.keyboard.press("2")
    seen.frames()
    assert seen.page.evaluate("drawn.base") > whole["base"], "another view is counted"


def test_long_names_of_layers_are_cut_before_their_ends_where_they_differ(watch, tmp_path):
    ends = [f"{number}.self_attn[level {level}]" for number in (4, 15) for level in (0, 1)]
    names = [f"transformer.encoder.layers.{end}" for end in ends]
    # Cells of 16 px down and 8 across.
    fields = Fields({name: replace(FIELDS["body.middle"], name=name) for name in names})
    path = write(tmp_path / "long.html", [Analysis(planted_photo(), fields)], ["long.png"], segments=[{}])
    for width in (390, 1440):
        seen = watch(viewport={"width": width, "height": 900}).open(path, "layer=" + names[0])
        rows = seen.page.locator(".layer")
        assert rows.locator("b").evaluate_all("all => all.map(one => one.textContent)") == names
        assert rows.locator("b").evaluate_all("all => all.map(one => one.title)") == names
        # The text's last characters, as they are laid out, lie inside of what clips them and beside the sizes.
        shown = rows.evaluate_all(
            """(rows, lengths) => rows.map((row, i) => {
                const texts = [...row.querySelectorAll("b, b *")].flatMap(one => [...one.childNodes])
                  .filter(one => one.nodeType === Node.TEXT_NODE);
                const last = texts.at(-1), range = document.createRange();
                range.setStart(last, last.length - lengths[i]);
                range.setEnd(last, last.length);
                const end = range.getBoundingClientRect(), name = row.querySelector("b").getBoundingClientRect();
                return [name.left <= end.left, end.right <= name.right + 1,
                        end.right < row.querySelector("small").getBoundingClientRect().left];
            })""",
            list(map(len, ends)),
        )
        assert shown == [[True] * 3] * 4, width
        assert rows.locator("small").all_inner_texts() == ["16×30 · stride 16×8"] * 4
        assert "13×10 px/cell" in seen.page.locator("#legend").inner_text()
        assert seen.page.evaluate("document.documentElement.scrollWidth") == width
