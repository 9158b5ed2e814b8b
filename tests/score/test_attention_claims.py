"""The tool that measures object queries: its measures and nulls on cases that can be computed by hand."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import queries_network

import deformscope
from deformscope.datasets.coco import read_coco

TOOL = Path(__file__).parents[2] / "tools" / "attention_claims.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("attention_claims", TOOL)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOL.parent)
        spec.loader.exec_module(module)
    return module


def test_points_are_measured_by_their_weights(tool):
    points = np.array([[2.0, 2], [2, 10], [10, 2], [10, 10], [30, 30]])
    weights = np.array([0.3, 0.2, 0.1, 0.15, 0.25])
    mask = np.zeros((20, 20), dtype=bool)
    mask[:6, :6] = True
    found = tool.measured(points, weights, np.array([0.0, 0, 10, 10]), mask)
    mean = (weights[:, None] * points).sum(0)
    np.testing.assert_allclose(found["mean"], mean)
    spread = np.sqrt((weights[:, None] * (points - mean) ** 2).sum(0))
    assert found["radius"] == pytest.approx(2 * np.sqrt(spread.prod()))
    assert found["box"] == pytest.approx(0.75) and found["mask"] == pytest.approx(0.3)


def test_an_evenly_filled_box_is_the_limit_of_many_points_in_it(tool):
    reference, box = np.array([2.0, 4, 10, 16]), np.array([4.0, 0, 20, 10])
    mask = np.zeros((30, 30), dtype=bool)
    mask[3:8, 5:9] = True
    found = tool.evenly(reference, box, mask)
    random = np.random.default_rng(0).random((200_000, 2)) * [8, 12] + [2, 4]
    many = tool.measured(random, np.full(len(random), 1 / len(random)), box, mask)
    for key in ("radius", "box", "mask"):
        assert found[key] == pytest.approx(many[key], rel=0.02)
    np.testing.assert_allclose(found["mean"], many["mean"], atol=0.03)


def test_weighted_correlations_are_those_of_repeated_objects(tool):
    random = np.random.default_rng(1)
    a, b = random.normal(size=20), random.normal(size=20)
    b += a
    counts = random.integers(0, 4, size=(3, 20))
    for counted, found in zip(counts, tool.correlations(a, b, counts.astype(float)), strict=True):
        assert found == pytest.approx(np.corrcoef(np.repeat(a, counted), np.repeat(b, counted))[0, 1])
    assert np.isnan(tool.correlations(a, np.ones(20), counts.astype(float))).all()


def test_it_collects_and_tells_of_a_folder(tool, tmp_path, monkeypatch):
    from PIL import Image

    for name in ("annotations", "val"):
        (tmp_path / "data" / name).mkdir(parents=True)
    photo = np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)
    detector = queries_network.detector()
    images, objects = [], []
    for number in range(3):
        Image.fromarray(np.roll(photo, 7 * number, axis=1)).save(tmp_path / "data" / "val" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 130, "height": 90})
        found = detector(np.roll(photo, 7 * number, axis=1))[0]
        x0, y0, x1, y1 = found["boxes"][0].tolist()
        outline = [x0, y0, x1, y0, x1, y1, x0, y1]
        one = {"id": number, "image_id": number, "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": [outline]}
        objects.append(one | {"category_id": int(found["labels"][0]) + 1, "iscrowd": 0})
    names = [{"id": number + 1, "name": name} for number, name in enumerate(queries_network.NAMES)]
    content = {"images": images, "annotations": objects, "categories": names}
    (tmp_path / "data" / "annotations" / "instances_val.json").write_text(json.dumps(content))
    dataset = read_coco(tmp_path / "data", "val")
    records = tool.collect(detector, dataset.photos, dataset.names)
    assert len(records) == 3 and all(len(one["layers"]) == queries_network.LAYERS for one in records)
    field = deformscope.analyse(detector, dataset.photos[0].path)
    query = field.queries()[0]
    centre = list(field.decoder.values())[1].centre()[0, query]
    mean = records[0]["layers"][1]["sources"]["points"]["mean"]
    np.testing.assert_allclose(mean, list(field.decoder.values())[1].to_pixels(centre).numpy(), rtol=1e-4)
    told = tool.summary(tool.Objects(records, 3), 1)
    error = told["sources"]["points"]["centre_error"]
    assert error[1] <= error[0] <= error[2]
    assert told["over"]["reference"]["centre_error"][0] == pytest.approx(
        error[0] - told["sources"]["reference"]["centre_error"][0]
    )
    monkeypatch.setattr(tool, "DOCS", tmp_path)
    (tmp_path / "runs").mkdir()
    run = {"detector": "queries", "data": "data", "photos": 3, "annotated": 3, "records": records}
    (tmp_path / "runs" / "one.records.json").write_text(json.dumps(run))
    tool.tables(tmp_path / "runs")
    assert "3 of 3 annotated objects on 3 photos are matched." in (tmp_path / "attention_tables.md").read_text()
