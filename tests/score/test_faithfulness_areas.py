"""Areas over photos: means, paired gains with the right sign, and a table of a folder."""

import json

import numpy as np
import pytest
from PIL import Image

from deformscope.score.faithfulness import as_table, summarise


def record(attribution, nearest, random, depth=1):
    orders = {"attribution": attribution, "nearest": nearest, "random": random}
    areas = {of: {"deletion": orders, "insertion": orders} for of in ("score", "iou")}
    layers = [{"layer": f"layer{index}", "depth": index, "candidates": 9, "areas": areas} for index in range(depth)]
    return {"photo": "a.jpg", "class": "cat", "score": 0.5, "layers": layers}


def test_gains_are_paired_and_positive_where_attribution_is_better():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.8, 60)
    records = [record(b, b + 0.1, b + 0.2 + 0.01 * rng.standard_normal(), depth=2) for b in base]
    areas = {(a.depth, a.kind, a.of, a.order): a for a in summarise(records)}
    assert len(areas) == 2 * 2 * 2 * 3
    near = areas[0, "deletion", "score", "nearest"]
    assert near.value == pytest.approx(base.mean() + 0.1)
    assert near.low < near.value < near.high
    assert (near.gain, near.gain_low, near.gain_high) == pytest.approx((0.1, 0.1, 0.1))
    assert areas[0, "insertion", "score", "nearest"].gain == pytest.approx(-0.1)
    random = areas[1, "deletion", "iou", "random"]
    assert random.gain_low < 0.2 < random.gain_high
    assert random.gain_high - random.gain_low < 0.01  # the photos' own spread cancels
    assert areas[0, "deletion", "score", "attribution"].gain == 0


def test_photos_whose_detections_have_fewer_layers_do_not_count_there():
    areas = summarise([record(0.1, 0.2, 0.3, depth=2), record(0.3, 0.4, 0.5, depth=1)])
    assert {(a.depth, a.photos) for a in areas} == {(0, 2), (1, 1)}
    assert as_table(areas).row_count == 8


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
    out = tmp_path / "areas.json"
    code, printed, complaints = command("faithfulness", folder, "--out", out, "--min-score", 0.5)
    assert (code, complaints) == (0, "")
    assert sum(line.startswith("│") for line in printed.split("\n")) == 8
    kept = json.loads(out.read_text())
    assert [photo["photo"] for photo in kept["photos"]] == ["cat.png"]
    assert kept["photos"][0]["layers"][0]["candidates"] == 9
    assert len(kept["areas"]) == 24


def test_a_folder_without_detections_is_told(command, folder):
    code, _, complaints = command("faithfulness", folder, "--min-score", 0.999)
    assert code == 2
    assert complaints.startswith("deformscope: --min-score 0.999: no photo has a detection")
