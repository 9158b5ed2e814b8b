"""A chosen detection shows what its sampling points add, at their places, in the page as in the library."""

import base64
import io
import json
import re
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from planted import planted

from deformscope import DeformscopeError
from deformscope.attribution import Attribution, Explanation, ReceptiveField
from deformscope.explorer import write
from deformscope.explorer.attributions import MOST_POINTS, strongest
from deformscope.explorer.document import page

ANALYSIS = planted()
PLUS, MINUS = (1, 3, 8, 9), (0, 2, 5, 20)
"""Points (group, k, y, x) of the low layer that add, and take away, most."""


def explanation(layers=("body.low", "body.middle")):
    """Of the planted photo's first detection: two strong points in the low layer, one in the middle one."""
    attributions = {}
    for name, field in ANALYSIS.fields.items():
        points = torch.zeros(field.offset.shape[1:5])
        if name in layers:
            points += 0.01 * torch.rand(points.shape, generator=torch.Generator().manual_seed(1))
            points[(0, 4, 9, 21) if name == "body.middle" else PLUS] = 2.0
        if name == "body.low" and name in layers:
            points[MINUS] = -1.0
        attributions[name] = Attribution(field, points, torch.zeros(*points.shape, 2))
    placement = ANALYSIS.fields["body.low"].placement()
    found = {key: value[:1] for key, value in ANALYSIS.detection.items()}
    return Explanation(
        attributions, ReceptiveField(torch.ones(4, 4), placement), "score", 1.5, ANALYSIS.photo, found, ("cat", "dog")
    )


@pytest.fixture(scope="module")
def whys(tmp_path_factory):
    path = tmp_path_factory.mktemp("whys") / "whys.html"
    return write(path, [ANALYSIS], ["planted.png"], explanations=[{0: explanation()}])


def test_the_strongest_points_come_last_and_weak_ones_not_at_all():
    values = torch.randn(2, 6, 17, 34, generator=torch.Generator().manual_seed(3)) ** 5
    index, shares = strongest(values)
    flat = values.flatten().numpy()
    assert len(index) <= MOST_POINTS
    assert (np.diff(np.abs(flat[index])) >= 0).all()
    np.testing.assert_allclose(shares, flat[index] / np.abs(flat).max() * 127, atol=0.5)
    assert index[-1] == np.abs(flat).argmax()
    assert not strongest(torch.zeros(1, 9, 3, 4))[0].size


def test_the_page_holds_them_by_detection_and_layer():
    text = page([ANALYSIS], explanations=[{1: explanation(), 0: explanation(("body.middle",))}])
    record = json.loads(re.search(r'id="photo-0">(.*?)</script>', text, re.DOTALL)[1])
    by_detection = {why["detection"]: why for why in record["whys"]}
    assert set(by_detection) == {0, 1}
    assert list(by_detection[0]["layers"]) == ["body.middle"]
    low = by_detection[1]["layers"]["body.low"]
    packed = zlib.decompress(base64.b64decode(low["points"]))
    count = len(packed) // 5
    index = np.frombuffer(packed[: 4 * count], "<u4")
    shares = np.frombuffer(packed[4 * count :], np.int8)
    shape = ANALYSIS.fields["body.low"].offset.shape[1:5]
    assert (index[-1], shares[-1]) == (np.ravel_multi_index(PLUS, shape), 127)
    assert (index[-2], shares[-2]) == (np.ravel_multi_index(MINUS, shape), -64)
    assert low["largest"] == 2
    assert "whys" not in json.loads(re.search(r'id="photo-0">(.*?)</script>', page([ANALYSIS]), re.DOTALL)[1])


def test_wrong_explanations_are_told():
    with pytest.raises(DeformscopeError, match=r"explanations: 2 given for 1 photos; expected one mapping per photo"):
        page([ANALYSIS], explanations=[{}, {}])
    foreign = explanation()
    foreign.layers["elsewhere"] = foreign.layers["body.low"]
    with pytest.raises(DeformscopeError, match=r"explanations: layer 'elsewhere' is none of the photo's: 'body.low'"):
        page([ANALYSIS], explanations=[{0: foreign}])


def colour(seen, y, x):
    """The pixel of the window at a place of the photo."""
    left, top = seen.screen(y, x)
    with Image.open(io.BytesIO(seen.page.screenshot(clip={"x": left, "y": top, "width": 1, "height": 1}))) as image:
        return image.convert("RGB").getpixel((0, 0))


def test_why_shows_the_points_of_a_detection_where_they_lie(watch, whys):
    seen = watch().open(whys, "layer=body.low&light=1")
    assert seen.page.locator("button.why").count() == 1
    seen.page.locator("button.why").click()
    seen.frames()
    assert "what sampling points add to dog 0.91: red adds" in seen.page.locator("#legend").inner_text()
    assert "why=0" in seen.hash()
    assert "layer=body.low" in seen.hash(), "the layer stays where the detection depends on it"
    places = ANALYSIS.fields["body.low"].to_pixels(ANALYSIS.fields["body.low"].sampling_points())[0]
    r, _, b = colour(seen, *places[PLUS].tolist())
    assert r > b + 60
    r, _, b = colour(seen, *places[MINUS].tolist())
    assert b > r + 60
    seen.page.locator("button.why").click()
    seen.frames()
    assert "why" not in seen.hash()
    assert "divergence" in seen.page.locator("#legend").inner_text()
    assert not seen.complaints
    assert all(request.startswith(("file:", "data:", "about:")) for request in seen.requests)


def test_from_another_layer_it_leads_to_the_last_that_matters(watch, whys):
    seen = watch().open(whys, "layer=body.top")
    seen.page.locator("button.why").click()
    seen.frames()
    assert "layer=body.middle" in seen.hash()
    seen.page.get_by_label("body.top").check()
    seen.frames()
    assert "dog 0.91 does not depend on this layer" in seen.page.locator("#legend").inner_text()
    seen.page.locator("#stage").press("Escape")
    assert "why" not in seen.hash()


def test_a_link_to_an_explanation_that_the_page_does_not_hold_shows_the_view(watch, pages):
    seen = watch().open(pages["one"], "why=1")
    assert "why" not in seen.hash()
    assert seen.page.locator("button.why").count() == 0
    assert not seen.complaints
