"""Areas over photos: means, paired gains with the right sign, and a table of a folder."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deformscope import load
from deformscope.score.faithfulness import LayerAreas, PhotoAreas, as_tables, as_text, summarise


def record(attribution, nearest, random, depth=1):
    orders = {"attribution": attribution, "nearest": nearest, "random": random}
    areas = {of: {"deletion": orders, "insertion": orders} for of in ("score", "iou")}
    return PhotoAreas("a.jpg", "cat", 0.5, tuple(LayerAreas(f"layer{n}", n, 9, areas) for n in range(depth)))


def test_gains_are_paired_and_positive_where_attribution_is_better():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.8, 60)
    records = [record(b, b + 0.1, b + 0.2 + 0.01 * rng.standard_normal(), depth=2) for b in base]
    areas = {(a.depth, a.kind, a.of, a.order): a for a in summarise(records)}
    assert len(areas) == 2 * 2 * 2 * 3
    near = areas[0, "deletion", "score", "nearest"]
    assert near.area.value == pytest.approx(base.mean() + 0.1)
    assert near.area.low < near.area.value < near.area.high
    assert (near.gain.value, near.gain.low, near.gain.high) == pytest.approx((0.1, 0.1, 0.1))
    assert areas[0, "insertion", "score", "nearest"].gain.value == pytest.approx(-0.1)
    random = areas[1, "deletion", "iou", "random"].gain
    assert random.low < 0.2 < random.high
    assert random.high - random.low < 0.01  # the photos' own spread cancels
    assert areas[0, "deletion", "score", "attribution"].gain.value == 0


def test_photos_whose_detections_have_fewer_layers_do_not_count_there():
    areas = summarise([record(0.1, 0.2, 0.3, depth=2), record(0.3, 0.4, 0.5, depth=1)])
    assert {(a.depth, a.photos) for a in areas} == {(0, 2), (1, 1)}
    assert [table.row_count for table in as_tables(areas)] == [12, 12]


def test_the_table_fits_into_80_columns_and_a_verdict_follows():
    orders = {"deletion": {"attribution": 0.1, "nearest": 0.3, "random": 0.4}}
    orders["insertion"] = {"attribution": 0.7, "nearest": 0.7, "random": 0.4}
    layer = LayerAreas("heads.stride16.deform", 0, 9, dict.fromkeys(("score", "iou"), orders))
    record = PhotoAreas("a.jpg", "cat", 0.5, (layer,))
    areas = summarise([record, record])
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(*as_tables(areas))
    printed = console.export_text()
    assert "…" not in printed and all(len(line) <= 80 for line in printed.splitlines())
    for number in ("0.100", "0.700", "0.200 [0.200, 0.200]", "0.300 [0.300, 0.300]", "0.000 [0.000, 0.000]"):
        assert number in printed
    assert "heads.stride16.deform, probability: does not beat nearest (switched on)" in as_text(areas)
    orders["insertion"]["nearest"] = 0.6
    assert "heads.stride16.deform, box IoU: faithful, beats every other order" in as_text(summarise([record, record]))


@pytest.fixture
def folder(tmp_path, cat):
    """A photo of a cat, and a grey one on which nothing is found."""
    root = tmp_path / "data"
    (root / "annotations").mkdir(parents=True)
    (root / "val").mkdir()
    image = Image.open(cat).convert("RGB")
    image.save(root / "val" / "cat.png")
    Image.new("RGB", (64, 48), (127, 127, 127)).save(root / "val" / "grey.png")
    content = {
        "images": [
            {"id": 1, "file_name": "cat.png", "width": image.width, "height": image.height},
            {"id": 2, "file_name": "grey.png", "width": 64, "height": 48},
        ],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return root


def test_the_command_prints_areas_and_keeps_the_photos(command, folder, tmp_path):
    detector, out = load("packaged", shorter_side=128, longer_side=192), tmp_path / "areas.json"
    detector.save(tmp_path / "low.safetensors")
    options = ("--detector", tmp_path / "low.safetensors", "--min-score", 0.3)
    code, printed, complaints = command("faithfulness", folder, "--out", out, *options)
    assert (code, complaints) == (0, "")
    assert sum(line.startswith("│") for line in printed.split("\n")) % 12 == 0
    assert ", probability: " in printed and ", box IoU: " in printed and "…" not in printed
    kept = json.loads(out.read_text())
    assert [photo["photo"] for photo in kept["photos"]] == ["cat.png"]
    assert kept["photos"][0]["layers"][0]["candidates"] == 9
    assert len(kept["areas"]) == 12 * len(kept["photos"][0]["layers"]) > 0


def test_a_folder_without_detections_is_told(command, folder):
    code, _, complaints = command("faithfulness", folder, "--min-score", 0.999)
    assert code == 2
    assert complaints.startswith("deformscope: --min-score 0.999: no photo has a detection")
