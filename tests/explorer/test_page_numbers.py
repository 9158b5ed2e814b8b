"""What the page shows in a real browser is what the library says."""

import io
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from planted import PLACES, SIZE, planted, planted_fields, planted_segments

from deformscope import CellGrid, Fields, OffsetField, Placement, divergence, extent, radius, split
from deformscope.analysis import Analysis
from deformscope.explorer import page, write
from deformscope.explorer.document import write_text
from deformscope.fields.stack import stacked_points

FIELDS = planted_fields()
LAYERS = [("body.low", 0), ("body.low", 1), ("body.middle", 0), ("body.top", 0)]
MINUS = str.maketrans("−", "-")


def expected(name: str, group: int, place: tuple[float, float]) -> dict[str, list[float]]:
    """The table's rows, from the library."""
    field = FIELDS[name]
    y, x = field.cell_at(place)
    d_f, d_k = split(field.offset[:, group : group + 1])
    shift = d_f[0, 0, 0, y, x]
    per_cell = torch.tensor(field.pixels_per_cell())
    height, width = (part[0, 0, y, x].item() for part in extent(d_k, field.kernel_size))
    r = radius(d_k, field.kernel_size)[0, 0, y, x].item()
    if min(height, width) < 0:  # drawn together
        assert r == 0
        r = -math.sqrt(abs(height * width))
    rows = {
        "cell": [y, x],
        "centre": field.to_pixels(field.centres()[y, x]).tolist(),
        "d_f": shift.tolist(),
        "d_f_px": (shift * per_cell).tolist(),
        "length": [shift.norm().item(), (shift * per_cell).norm().item()],
        "divergence": [divergence(d_f[0, 0, 0], field.stride)[y, x].item()],
        "spread": [height, width],
        "radius": [r, r * math.sqrt(per_cell.prod().item())],
    }
    if field.modulation is not None:
        rows["modulation"] = [field.modulation[0, group, :, y, x].mean().item()]
    return rows


@pytest.mark.parametrize(("name", "group"), LAYERS)
def test_hover_shows_the_librarys_numbers(watch, pages, name, group):
    seen = watch().open(pages["one"], f"layer={name}&group={group}")
    for place in PLACES:
        seen.point(*place)
        for row, values in expected(name, group, place).items():
            shown = seen.number(row)
            step = {"cell": 0, "centre": 0.1, "divergence": 0.001, "modulation": 0.002}.get(row, 0.01)
            steps = [step, 0.1] if row in ("length", "radius") else [0.1 if row == "d_f_px" else step] * len(values)
            assert len(shown) == len(values), row
            for a, b, unit in zip(shown, values, steps, strict=True):
                assert abs(a - b) <= 0.51 * unit + 1e-4 + (0.002 if row == "modulation" else 0), (row, shown, values)
    assert not seen.complaints


def test_the_sampling_points_of_a_place_are_listed_as_the_library_has_them(watch, pages):
    seen = watch().open(pages["one"], "layer=body.low&group=1")
    seen.page.locator("summary", has_text="Sampling points").click()
    for place in PLACES:
        seen.point(*place)
        field = FIELDS["body.low"]
        y, x = field.cell_at(place)
        at = field.to_pixels(field.sampling_points()[0, 1, :, y, x]).tolist()
        rows = seen.page.locator("table.points tbody tr").all_inner_texts()
        assert len(rows) == 6
        for row, point, offset, scalar in zip(
            rows, at, field.offset[0, 1, :, y, x].tolist(), field.modulation[0, 1, :, y, x].tolist(), strict=True
        ):
            shown = [float(part) for part in row.translate(MINUS).replace(",", " ").split()][1:]
            assert np.abs(np.array(shown) - [*offset, *point, scalar]).max() < 0.06, (shown, point)


@pytest.mark.parametrize(("depth", "place"), [(1, PLACES[1]), (2, PLACES[1]), (3, PLACES[1]), (3, (4.0, 6.0))])
def test_a_pinned_cells_points_through_several_layers_lie_where_the_library_stacks_them(watch, pages, depth, place):
    y, x = place
    seen = watch().open(pages["one"], f"layer=body.top&depth={depth}&a={x},{y}&opacity=0&boxes=0")
    with seen.page.expect_download() as download:
        seen.page.keyboard.press("Shift+S")
    tree = ElementTree.parse(download.value.path())
    space = {"svg": "http://www.w3.org/2000/svg"}
    photo = tree.find("svg:image", space)
    left, top, width = (float(photo.get(key)) for key in ("x", "y", "width"))
    scale = width / SIZE[1]
    dots = []
    for path in tree.iterfind(".//svg:path", space):
        if path.get("fill") == "#e69f00":
            for x0, y0, r in re.findall(r"M(-?[\d.]+) (-?[\d.]+)a([\d.]+) ", path.get("d")):
                dots.append(((float(y0) - top) / scale, (float(x0) + float(r) - left) / scale))
    order = list(FIELDS.values())[3 - depth :]
    stacked = stacked_points(order, FIELDS["body.top"].cell_at((y, x)))
    places = torch.cat(stacked.points).numpy()
    places = places[np.isfinite(places).all(axis=1)]
    # 6 points in the lowest layer's kernel: 9, 9 · 9, 9 · 9 · 6.
    assert len(stacked.points[-1]) == (9, 81, 486)[depth - 1]
    assert len(dots) == len(places)
    nearest = np.abs(np.array(dots)[:, None] - places[None]).max(axis=-1)
    assert nearest.min(axis=0).max() < 0.02 and nearest.min(axis=1).max() < 0.02


@pytest.mark.parametrize("name", ["body.low", "body.middle"])
def test_the_threshold_changes_the_masks_area_as_numpy_says(watch, pages, name):
    seen = watch().open(pages["one"], f"layer={name}")
    field = FIELDS[name]
    div = divergence(split(field.offset[:, :1])[0][0, 0, 0], field.stride).numpy()
    centres = field.to_pixels(field.centres()).numpy()
    on_photo = ((centres >= 0) & (centres <= SIZE)).all(axis=-1)
    for threshold in (-0.4111, -0.3762, 0.0, 0.2113):
        seen.slide("div", threshold)
        inside, whole = ((div < threshold) & on_photo).sum(), on_photo.sum()
        assert seen.page.locator("#area").inner_text() == f"{inside} of {whole} cells, {100 * inside / whole:.1f} %"


def test_the_mask_covers_that_share_of_the_picture(watch, tmp_path):
    y, x = torch.meshgrid(torch.arange(21.0), torch.arange(34.0), indexing="ij")
    shift = torch.stack([torch.sin(y / 3.1) * 2, torch.cos(x / 4.7) * 3], dim=-1).expand(1, 1, 9, 21, 34, 2)
    field = OffsetField(
        shift,
        input_size=(21, 34),
        cells=CellGrid((10.0, 9.5), (0.5, 0.5)),
        placements=(Placement(SIZE),),
        name="smooth",
    )
    file = write(tmp_path / "page.html", [Analysis(planted().photo, Fields({"smooth": field}))])
    seen = watch().open(file, "length=-4&density=6&light=1")

    def picture() -> np.ndarray:
        (left, top), (right, bottom) = seen.screen(0, 0), seen.screen(*SIZE)
        clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        with Image.open(io.BytesIO(seen.page.screenshot(clip=clip))) as image:
            return np.asarray(image.convert("RGB").resize(SIZE[::-1], Image.Resampling.BOX)).astype(int)

    seen.page.keyboard.press("m")
    seen.frames()
    plain = picture()
    seen.page.keyboard.press("m")
    # Between cells' centres the page interpolates; so does torch here, at the pixels of the photo.
    div = divergence(shift[0, 0, 0])
    y, x = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
    at = field.output_cells.to_cells(torch.stack([y, x], dim=-1))
    grid = torch.stack([2 * at[..., 1] / 33 - 1, 2 * at[..., 0] / 20 - 1], dim=-1)
    smooth = torch.nn.functional.grid_sample(div[None, None], grid[None], align_corners=True, padding_mode="border")
    for threshold in (-0.6, 0.0, 0.5):
        seen.slide("div", threshold)
        covered = np.abs(picture() - plain).max(axis=-1) > 8
        agreement = (covered == (smooth[0, 0].numpy() < threshold)).mean()
        assert agreement > 0.96, (threshold, agreement)


def test_a_particle_follows_the_flow_to_its_sink(watch, pages):
    seen = watch().open(pages["one"], "layer=body.middle")
    seen.page.keyboard.press("f")
    seen.click(*PLACES[0])
    words = seen.page.locator("#ended").inner_text().translate(MINUS)
    assert "came to rest" in words
    found = [float(part) for part in re.search(r"at (\S+), (\S+) px", words).groups()]
    # The planted field contracts on output cell (9.25, 21.5); offsets are on steps of 1/256 cell.
    field = FIELDS["body.middle"]
    sink = field.to_pixels(torch.tensor([9.25, 21.5])).tolist()
    per_cell = field.pixels_per_cell()
    assert all(abs(a - b) < 0.12 * size for a, b, size in zip(found, sink, per_cell, strict=True))
    assert "from=" in seen.hash()
    seen.page.keyboard.press("Escape")
    seen.frames()
    assert seen.page.locator("#ended").inner_text() == ""


def test_two_pins_are_compared_and_a_click_on_one_removes_it(watch, pages):
    seen = watch().open(pages["one"], "layer=body.middle")
    seen.click(*PLACES[0])
    seen.click(*PLACES[1])
    seen.page.mouse.move(5, 5)
    seen.frames()
    a, b, less = (seen.number("d_f", column) for column in ("a", "b", "here"))
    assert seen.page.locator('th[data-column="here"]').inner_text() == "B − A"
    assert np.abs(np.array(less) - (np.array(b) - np.array(a))).max() <= 0.011
    seen.click(*PLACES[0])
    assert seen.number("d_f", "a") == [] and seen.number("d_f", "b") == b
    seen.page.get_by_label("remove pin B").click()
    seen.frames()
    assert seen.number("d_f", "b") == []


def test_segments_are_offered_where_there_are_some(watch, tmp_path):
    without = watch().open(write(tmp_path / "none.html", [planted()], segments=[{}]))
    assert not without.page.locator("label.view", has_text="segments").is_visible()
    file = write(tmp_path / "page.html", [planted()], segments=[{"body.middle": planted_segments()}])
    seen = watch().open(file, "layer=body.middle&view=segments")
    for place, words in (((50, 90), "1 · 1.25"), ((140, 220), "2 · 0.50"), ((95, 150), "none")):
        seen.point(*place)
        assert seen.page.locator('td[data-row="segment"][data-column="here"]').inner_text() == words
    assert "2 segments" in seen.page.locator("#legend").inner_text()


def test_circles_of_kernels_that_are_drawn_together_are_seen_and_told_apart(watch, tmp_path):
    fields = planted_fields()
    field = fields["body.middle"]
    field.offset[:] = -field.offset
    file = write(tmp_path / "page.html", [Analysis(planted().photo, fields)])
    seen = watch().open(file, "layer=body.middle&view=circles")
    high, wide = (side[0, 0] for side in extent(split(field.offset)[1], (3, 3)))
    assert (high < 0).all() and (wide < 0).all()
    largest = float((high * wide).sqrt().max())
    told = f"in pink |r| of kernels drawn together, up to {largest:.3g} cells"
    assert told in seen.page.locator("#legend").inner_text()
    shown = seen.page.evaluate(
        """() => {
          const canvas = document.getElementById("base");
          const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          let pink = 0;
          for (let i = 0; i < data.length; i += 4) pink += data[i] > 200 && data[i + 1] < 90 && data[i + 2] > 100;
          return pink;
        }"""
    )
    assert shown > 200


def test_offsets_that_are_no_numbers_leave_gaps_and_no_complaints(watch, tmp_path):
    fields = planted_fields()
    field = fields["body.top"]
    field.offset[..., 2:4, 3:6, :] = float("nan")
    field.offset[..., 6, 7, :] = 1e30
    file = write_text(tmp_path / "page.html", page([Analysis(planted().photo, fields, {}, (), "")]))
    seen = watch().open(file, "layer=body.top&depth=3")
    for key in "1234":
        seen.page.keyboard.press(key)
        seen.frames()
    seen.point(*field.to_pixels(field.centres()[2, 4]).tolist())
    assert seen.page.locator('td[data-row="d_f"][data-column="here"]').inner_text() == "–, –"
    seen.click(*field.to_pixels(field.centres()[2, 4]).tolist())
    words = "108 components are no finite numbers: gaps; 18 lie beyond 600 cells: cut there"
    assert seen.page.get_by_text(words).is_visible()
    assert not seen.complaints
