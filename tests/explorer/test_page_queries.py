"""Deformable attention in the page: what it shows of a chosen query is what the library says, layer by layer, head by
head."""

import math

import numpy as np
import pytest
import queries_network
import torch
from planted import SIZE, planted_photo

import deformscope
from deformscope.analysis import Analysis
from deformscope.explorer import attention, explore, write
from deformscope.explorer.document import page
from deformscope.fields.moments import moments

LAST, FIRST = "net.decoder.1", "net.decoder.0"


@pytest.fixture(scope="module")
def looked() -> Analysis:
    """A random network with an encoder and a decoder on the planted photo; three of its detections."""
    found = deformscope.analyse(queries_network.detector(), planted_photo())
    kept = {key: value[:3] for key, value in found.detection.items()}
    boxes = torch.tensor([[20.0, 30, 300, 190], [40, 50, 140, 150], [200, 60, 290, 120]])
    detection = kept | {"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0.7])}
    return Analysis(found.photo, found.fields, detection, found.class_names, found.detector)


@pytest.fixture(scope="module")
def decoder_only(looked) -> Analysis:
    fields = deformscope.Fields(attention=looked.decoder)
    return Analysis(looked.photo, fields, looked.detection, looked.class_names, looked.detector)


@pytest.fixture(scope="module")
def written(looked, decoder_only, tmp_path_factory):
    folder = tmp_path_factory.mktemp("attention")
    return {
        "both": write(folder / "both.html", [looked], ["both.png"]),
        "decoder": write(folder / "decoder.html", [decoder_only], ["decoder.png"]),
    }


def expected(looked: Analysis, layer: str, query: int, head: int | None = None) -> dict[str, list[float]]:
    """The table's rows for a query, one point at a time."""
    field = looked.fields.attention[layer]
    place = field.placement()
    points, weights = [], []
    for one in range(field.points.shape[2]) if head is None else [head]:
        for point in range(field.points.shape[3]):
            points.append(place.to_photo(field.points[0, query, one, point].double()).numpy())
            weights.append(float(field.weights[0, query, one, point]))
    points, shares = np.array(points), np.array(weights) / sum(weights)
    reference = field.reference[0, query].double()
    centre = place.to_photo(reference[:2]).numpy()
    size = (reference[2:] / torch.tensor(place.scale)).numpy()
    mean = shares @ points
    inside = ((points >= centre - size / 2) & (points <= centre + size / 2)).all(axis=1)
    outside = ((points < 0) | (points > SIZE)).any(axis=1)
    return {
        "query": [query],
        "reference": centre.tolist(),
        "box": size.tolist(),
        "mean": mean.tolist(),
        "moved": (mean - centre).tolist(),
        "deviation": np.sqrt(shares @ (points - mean) ** 2).tolist(),
        "inside": [100 * shares[inside].sum()],
        "outside": [outside.sum(), len(points)],
    }


def shown(seen, row: str, column: str = "a") -> list[float]:
    text = seen.page.locator(f'td[data-row="{row}"][data-column="{column}"]').inner_text()
    return [float(part.replace("−", "-")) for part in text.replace(",", " ").replace("of", " ").split()]


def check(seen, wanted: dict[str, list[float]], column: str = "a") -> None:
    for row, values in wanted.items():
        found = shown(seen, row, column)
        assert len(found) == len(values), row
        unit = {"query": 0.01, "outside": 0.01, "inside": 0.2}.get(row, 0.1)  # rounding
        assert np.abs(np.array(found) - values).max() <= 0.6 * unit + 0.02, (row, found, values)


@pytest.mark.parametrize("kind", ["both", "decoder"])
def test_the_best_detections_query_is_shown_and_others_can_be_chosen(watch, written, looked, kind):
    seen = watch().open(written[kind])
    queries = looked.detection["query"].tolist()
    check(seen, expected(looked, LAST, queries[0]))
    assert LAST in seen.page.locator("#legend .words").inner_text()
    seen.page.get_by_role("button", name="Query of").nth(1).click()
    seen.frames()
    check(seen, expected(looked, LAST, queries[1]))
    # Layer by layer, head by head.
    seen.page.keyboard.press("[")
    seen.frames()
    check(seen, expected(looked, FIRST, queries[1]))
    seen.page.get_by_label("Heads", exact=True).select_option("2")
    seen.frames()
    check(seen, expected(looked, FIRST, queries[1], head=1))
    assert f"query={queries[1]}" in seen.hash() and "group=2" in seen.hash()
    assert not seen.complaints


def test_a_click_chooses_the_smallest_detection_there_or_the_nearest_reference(watch, written, looked):
    seen = watch().open(written["decoder"])
    queries = looked.detection["query"].tolist()
    seen.click(100, 90)  # in the first and the second box, the second being smaller
    assert shown(seen, "query") == [queries[1]]
    seen.click(100, 250)
    assert shown(seen, "query") == [queries[2]]
    seen.click(180, 160)
    assert shown(seen, "query") == [queries[0]]
    seen.page.locator("#stage").focus()
    seen.page.keyboard.press("ArrowRight")
    seen.frames()
    assert shown(seen, "query") == [queries[1]]
    place = (8.0, 306.0)  # in no box
    seen.click(*place)
    field = looked.fields.attention[LAST]
    centres = field.to_pixels(field.reference[0, :, :2])
    nearest = int((centres - torch.tensor(place)).norm(dim=1).argmin())
    assert shown(seen, "query") == [nearest]
    check(seen, expected(looked, LAST, nearest), "here")
    seen.page.get_by_label("remove pin A").click()
    seen.frames()
    assert shown(seen, "query") == [queries[0]]


def test_an_encoders_levels_are_fields_of_all_heads_and_each(watch, written, looked):
    field = looked.fields.attention["net.encoder"]
    place = (118.7, 203.4)
    for level, head in ((0, None), (1, 1)):
        seen = watch().open(
            written["both"], f"layer=net.encoder%5Blevel+{level}%5D&group={0 if head is None else head + 1}"
        )
        seen.point(*place)
        kernels = moments(field, level, head)
        y, x = kernels.cell_at(place)
        assert seen.number("cell") == [y, x]
        d_f, d_k = deformscope.split(kernels.offset)
        assert np.abs(np.array(seen.number("d_f")) - d_f[0, 0, 0, y, x].numpy()).max() < 0.01
        height, width = (float(part[0, 0, y, x]) for part in deformscope.extent(d_k, (2, 2)))
        r = float(deformscope.radius(d_k, (2, 2))[0, 0, y, x])
        assert (
            abs(seen.number("radius")[0] - (r if min(height, width) >= 0 else -math.sqrt(abs(height * width)))) < 0.02
        )
        assert seen.page.get_by_label("Heads", exact=True).input_value() == str(0 if head is None else head + 1)
        assert seen.page.locator("input[value=sampling]").is_disabled()
        assert not seen.complaints


def test_points_beyond_the_photo_are_drawn_and_pictures_hold_all(watch, written, looked):
    seen = watch().open(written["decoder"])
    queries = looked.detection["query"].tolist()
    seen.page.get_by_role("button", name="Query of").nth(2).click()
    with seen.page.expect_download() as waiting:
        seen.page.get_by_role("button", name="Save the view as SVG").click()
    text = waiting.value.path().read_text(encoding="utf-8")
    count = looked.fields.attention[LAST].points[0, queries[2]].numel() // 2
    assert text.count('stroke="#ffffff" stroke-width="0.8"') == count
    assert f"query {queries[2]}" in text


def test_the_record_holds_points_to_a_64th_px_and_weights_to_a_thousandth(looked):
    field = looked.fields.attention[LAST]
    record = attention.queries_record(field)
    assert record["step"] == 1 / 64 and record["ids"] == list(range(queries_network.QUERIES))
    few = attention.queries_record(field, torch.tensor([4, 1]))
    assert few["ids"] == [4, 1]
    centre = field.to_pixels(field.reference[0, 4, :2]).tolist()
    assert few["reference"][0] == pytest.approx(centre, abs=0.006)


def test_an_encoder_too_large_for_the_page_keeps_some_cells_samples(looked, monkeypatch):
    monkeypatch.setattr(attention, "MOST_OF_CELLS", 100)
    field = looked.fields.attention["net.encoder"]
    together, more = attention.encoder_level(field, 0)
    samples = more["samples"]
    assert 1 <= len(samples["ids"]) * samples["heads"] * samples["points"] <= 100
    assert together.offset.shape[1] == 1 + queries_network.HEADS and len(more["group_names"]) == 3


def test_queries_that_are_no_numbers_do_no_harm(watch, decoder_only, tmp_path):
    field = decoder_only.fields.attention[LAST]
    points = field.points.clone()
    points[0, :, 0, 0] = math.nan
    spoilt = deformscope.fields.attention.AttentionField(**vars(field) | {"points": points})
    fields = deformscope.Fields(attention={LAST: spoilt})
    path = write(tmp_path / "page.html", [Analysis(decoder_only.photo, fields, decoder_only.detection)])
    seen = watch().open(path)
    assert "–" not in seen.page.locator('td[data-row="mean"][data-column="a"]').inner_text()
    assert not seen.complaints


def test_captured_fields_are_explored_with_their_attention(looked):
    shown = explore(looked.fields, looked.photo)
    assert '"kind":"queries"' in shown.text
    assert '"kind":"queries"' in page([looked])
