"""Commands about detectors: which there are, and evaluating one."""

import json

import pytest


def test_detectors_lists_what_a_name_stands_for(command, monkeypatch, tmp_path):
    monkeypatch.setenv("DEFORMSCOPE_CACHE", str(tmp_path))
    code, table, _ = command("detectors")
    assert code == 0
    for text in (
        "packaged",
        "guided",
        "trunk",
        "mmdet/faster_rcnn_r50_fpn_dconv_c3-c5",
        "41.3",
        "detectron2/",
        "cached",
        str(tmp_path),
    ):
        assert text in table


@pytest.fixture
def coco(photo, tmp_path):
    """Two photos in COCO's layout."""
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/val").mkdir()
    images, objects = [], []
    for index in (1, 2):
        (tmp_path / f"coco/val/{index}.jpg").write_bytes(photo.read_bytes())
        images.append({"id": index, "file_name": f"{index}.jpg", "width": 130, "height": 90})
        box = [10.0, 20.0, 50.0, 40.0]
        objects.append({"id": index, "image_id": index, "category_id": 7, "bbox": box, "area": 2000.0, "iscrowd": 0})
    record = {"images": images, "annotations": objects, "categories": [{"id": 7, "name": "cat"}]}
    (tmp_path / "coco/annotations/instances_val.json").write_text(json.dumps(record))
    return tmp_path / "coco"


def test_evaluate_prints_the_ap_of_a_folder_in_cocos_layout(command, weights, coco):
    code, table, complaints = command("evaluate", coco, "--detector", weights, "--offset-mode", "none")
    assert (code, complaints) == (0, "")
    assert "AP50" in table
    assert "box" in table
    assert "AP by class" in table and "cat" in table
    code, chosen, _ = command("evaluate", "--data", coco, "--detector", weights, "--classes", "cat", "dog")
    assert code == 2 and chosen == ""  # no dog there
    code, chosen, _ = command("evaluate", "--data", coco, "--detector", weights, "--classes", "cat")
    assert code == 0 and "does not know" not in chosen


def test_evaluate_names_the_classes_that_the_detector_does_not_know_and_what_was_left_out(command, weights, coco):
    file = coco / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    content["categories"].append({"id": 8, "name": "okapi"})
    content["annotations"].append(content["annotations"][0] | {"id": 9, "category_id": 8})
    content["annotations"].append(content["annotations"][0] | {"id": 10, "bbox": [1, 2, 0, 0]})
    file.write_text(json.dumps(content))
    code, _, complaints = command("evaluate", "--data", coco, "--detector", weights)
    assert code == 2 and "1.jpg, annotation 10: bbox [1, 2, 0, 0]: zero area" in complaints
    code, printed, complaints = command("evaluate", "--data", coco, "--detector", weights, "--broken", "skip")
    assert code == 0
    assert "does not know okapi, which counts as 0" in printed
    assert complaints.startswith(f"deformscope: {file}: 1 broken annotations or photos: 1.jpg, annotation 10: bbox")
    assert complaints.endswith("zero area; they are left out\n") and complaints.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{coco}/nowhere"], "no such file or folder; expected a folder in COCO's layout"),
        (["--data", "{coco}", "--split", "test"], "no annotations/instances_test.json; there: instances_val.json"),
        (["--data", "{coco}", "--device", "abacus"], 'Invalid value "abacus" for --device. Not available here'),
        (["--data", "{coco}", "--offset-mode", "half"], 'Invalid value "half" for --offset-mode. Choose from'),
        (["--data", "{coco}", "--max-photos", "0"], 'Invalid value "0" for --max-photos. Must be >= 1.'),
        (["--data", "{coco}", "--limit", "3"], "--limit is now called --max-photos"),
    ],
)
def test_evaluate_names_what_is_wrong(arguments, message, command, weights, coco):
    given = [argument.replace("{coco}", str(coco)) for argument in arguments]
    code, _, complaints = command("evaluate", *given, "--detector", weights)
    assert code == 2
    assert message in complaints
    assert complaints.count("\n") == 1
