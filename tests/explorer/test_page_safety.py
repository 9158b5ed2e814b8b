"""The page in a real browser: harmless whatever it is given, silent towards the network, readable for all."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from planted import PLACES, planted, planted_fields

from deformscope.analysis import Analysis
from deformscope.explorer import page, write
from deformscope.explorer.notebook import Exploration


@pytest.mark.parametrize(
    "hostile",
    [
        "photo=99&layer=<img src=x>&view=none&zoom=1e99&div=NaN&a=1,2,3&b=x,y&depth=9&k=1e9&group=77",
        "a=1e300,-1e300&centre=Infinity,0&hide=9.9.9999&score=-1&density=0&light=7&from=9999,9999",
        "%E0%A4%A&&&=&theme=javascript:alert(1)&__proto__=1&constructor=2",
    ],
)
def test_a_broken_hash_is_harmless(watch, pages, hostile):
    seen = watch().open(pages["one"], hostile)
    seen.point(*PLACES[0])
    assert seen.number("cell") and not seen.complaints


def test_no_request_leaves_the_page_and_the_policy_stops_those_that_try(watch, pages):
    seen = watch().open(pages["three"])
    seen.page.evaluate(
        "window.broken = []; addEventListener('securitypolicyviolation', e => broken.push(e.blockedURI))"
    )
    for key in "23456123]][.,gkdfbm<>+-0t":
        seen.page.keyboard.press(key)
    seen.point(*PLACES[0])
    assert [url for url in seen.requests if not url.startswith(("data:", "about:"))] == [pages["three"].as_uri()]
    assert not seen.complaints
    assert seen.page.evaluate("broken") == []
    sent = seen.page.evaluate(
        "async () => { const image = new Image(); image.src = 'http://127.0.0.1:9/a.png';"
        " await new Promise(done => { image.onerror = done; image.onload = done; });"
        " return fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'stopped'); }"
    )
    assert sent == "stopped"
    assert len(seen.page.evaluate("broken")) == 2


def test_names_with_markup_are_shown_as_they_are(watch, tmp_path):
    markup = "<img src=x onerror=alert(1)>"
    fields = planted_fields()
    field = fields["body.low"]
    named = type(fields)()
    named.add(replace(field, name=f'"><svg onload=alert(2)>{markup}'))
    one = planted()
    analysis = Analysis(one.photo, named, one.detection, ("</script><script>alert(3)</script>", "'\"&lt;"), markup)
    file = write(tmp_path / "page.html", [analysis, analysis], [f"{markup}.jpg", "</title><script>alert(4)</script>"])
    seen = watch().open(file, "score=0")
    for key in "1234561":
        seen.page.keyboard.press(key)
    seen.click(*PLACES[0])
    assert seen.page.locator("h1").inner_text() == f"{markup}.jpg"
    assert seen.page.title().startswith(f"{markup}.jpg")
    assert seen.page.locator("body img").count() == 2, "the two thumbnails"
    assert seen.page.locator("[onload], [onerror], body > script:not([type])").count() == 0
    with seen.page.expect_download() as download:
        seen.page.keyboard.press("Shift+S")
    assert not set(download.value.suggested_filename) & set("<>\"'/\\ ")
    texts = [node.text for node in ElementTree.parse(download.value.path()).iter("{http://www.w3.org/2000/svg}text")]
    assert any("</script><script>alert(3)</script>" in text for text in texts)
    assert not seen.complaints


def test_a_notebooks_iframe_works_and_reads_nothing_around_it(watch, tmp_path):
    shown = Exploration(page([planted()], ['a & "b"\'s.png']))._repr_html_()
    file = tmp_path / "notebook.html"
    file.write_text(f"<!doctype html><p id=secret>secret</p>{shown}", encoding="utf-8")
    seen = watch()
    seen.page.goto(file.as_uri())
    frame = seen.page.frame_locator("iframe")
    frame.locator("#legend .words").wait_for(state="attached")
    assert frame.locator("h1").inner_text() == 'a & "b"\'s.png'
    frame.locator("#stage").hover()
    cell = frame.locator('td[data-row="cell"][data-column="here"]')
    cell.filter(has_text=re.compile(r"^\d+, \d+$")).wait_for()
    inside = seen.page.frames[1]
    assert (
        inside.evaluate("(() => { try { return parent.document.title } catch (e) { return e.name } })()")
        == "SecurityError"
    )
    assert not seen.complaints


def test_every_control_has_a_name_for_screen_readers(watch, pages):
    seen = watch().open(pages["three"], "view=points&layer=body.low")
    nameless = seen.page.evaluate(
        """() => [...document.querySelectorAll("input, select, button, nav, aside, section, dialog, #stage")]
          .filter(node => !(node.labels?.length && [...node.labels].some(one => one.textContent.trim()
              || one.querySelector("[aria-label]"))) && !node.getAttribute("aria-label")
              && !node.getAttribute("aria-labelledby") && !node.textContent.trim())
          .map(node => node.outerHTML)"""
    )
    assert nameless == []


def test_text_stands_out_from_its_ground_in_both_themes(watch, pages):
    def brightness(color: str) -> float:
        channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for theme in ("dark", "light"):
        seen = watch(color_scheme=theme).open(pages["one"])
        ground = seen.page.evaluate("getComputedStyle(document.getElementById('panel')).backgroundColor")
        for selector in ("h1", ".about", "legend", ".layer small", "output", ".hint"):
            color = seen.page.evaluate(f"getComputedStyle(document.querySelector('#panel {selector}')).color")
            low, high = sorted([brightness(color), brightness(ground)])
            assert (high + 0.05) / (low + 0.05) >= 4.5, (theme, selector, color)
