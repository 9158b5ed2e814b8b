"""Annotated folders: what is read, what is refused, and crops that move objects off the centre."""

import json

import numpy as np
import pytest

from deformscope import DeformscopeError
from deformscope.score.measures.annotations import Scene, Thing, decode, off_centre, open_folder
from deformscope.score.measures.marks import mark


def test_a_folder_and_its_annotation_file_give_the_same_photos_in_one_fixed_order(folder):
    photos = open_folder(folder)
    assert photos == open_folder(folder / "annotations" / "instances_val.json")
    assert sorted(image["id"] for image in photos.images) == list(range(14))
    assert [image["id"] for image in photos.images] != list(range(14))
    index = next(i for i, image in enumerate(photos.images) if image["id"] == 2)
    things = photos.scene(index).things
    assert [thing.category for thing in things] == ["cat", "dog", "cat"]
    assert [thing.ignored for thing in things] == [False, False, True]
    for thing in things:
        x0, y0, x1, y1 = (int(value) for value in thing.box)
        assert thing.mask.sum() == pytest.approx((x1 - x0) * (y1 - y0), rel=0.15)
        assert thing.mask[(y0 + y1) // 2, (x0 + x1) // 2]


def test_the_photos_folder_is_the_longest_name_that_begins_the_splits(folder):
    (folder / "v").mkdir()
    file = folder / "annotations" / "instances_val.json"
    file.rename(file.with_name("instances_val_masks.json"))
    assert open_folder(folder).folder == folder / "val"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("images"), "no COCO annotations"),
        (lambda c: c["annotations"][0].pop("bbox"), "no COCO annotations"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2]), "no COCO annotations"),
        (lambda c: c.update(categories=3), "no COCO annotations"),
    ],
)
def test_annotations_that_are_none_are_refused_in_one_line(folder, change, words):
    file = folder / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(DeformscopeError, match=words) as raised:
        open_folder(folder)
    assert "\n" not in str(raised.value)


def test_what_is_missing_is_said(folder, tmp_path):
    with pytest.raises(DeformscopeError, match="no such folder"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(DeformscopeError, match=r"there: instances_val\.json"):
        open_folder(folder, "test")
    (folder / "val").rename(folder / "elsewhere")
    with pytest.raises(DeformscopeError, match="no folder of photos"):
        open_folder(folder)


def test_annotations_cannot_name_files_outside_the_folder(folder):
    file = folder / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["file_name"] = "../val/../../secret.png"
    file.write_text(json.dumps(content))
    with pytest.raises(DeformscopeError, match="outside the folder"):
        open_folder(folder).scene(0)


def test_photos_may_be_links(folder, tmp_path):
    photos = open_folder(folder)
    index = next(i for i, image in enumerate(photos.images) if image["id"] == 2)
    expected = photos.scene(index).photo
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for photo in list((folder / "val").iterdir()):
        photo.rename(elsewhere / photo.name)
        photo.symlink_to(elsewhere / photo.name)
    assert np.array_equal(photos.scene(index).photo, expected)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [4, 5], "counts": [3, 99999999]},
        {"size": [4, 5], "counts": "o0000000000000000000000"},
        {"size": [400000, 5], "counts": [3, 5]},
        {"size": [4, 5], "counts": "\x01\x02é"},
        {"size": [4, 5]},
        {"counts": [20]},
        [[1, 2, 3, 4]],
        [[1, 2, float("nan"), 4, 5, 6]],
        "nonsense",
        [["a"] * 6],
        None,
        [],
    ],
)
def test_a_segmentation_that_is_no_mask_is_none(segmentation):
    assert decode(segmentation, (4, 5)) is None


def test_polygons_and_both_kinds_of_rle_give_the_same_mask():
    from pycocotools import mask as coco

    polygon = [[1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0]]
    expected = decode(polygon, (4, 5))
    assert expected.sum() == 6
    packed = coco.encode(np.asfortranarray(expected.astype(np.uint8)))
    assert (decode({"size": [4, 5], "counts": packed["counts"].decode()}, (4, 5)) == expected).all()
    runs = np.flatnonzero(np.diff(np.concatenate([[0], expected.T.ravel().astype(int), [2]]))).tolist()
    counts = np.diff([0, *runs]).tolist()
    assert (decode({"size": [4, 5], "counts": counts}, (4, 5)) == expected).all()
    assert decode([[-1e12, -1e12, 1e12, -1e12, 1e12, 1e12, -1e12, 1e12]], (4, 5)).all()  # quick, and no memory


def test_a_crop_moves_the_largest_object_off_the_centre_and_keeps_it_whole():
    photo = np.arange(200 * 300 * 3, dtype=np.uint32).astype(np.uint8).reshape(200, 300, 3)
    mask = np.zeros((200, 300), dtype=bool)
    mask[60:120, 110:190] = True
    centred = Thing("cat", (110.0, 60.0, 190.0, 120.0), mask)
    beside = Thing("dog", (0.0, 0.0, 40.0, 30.0))
    crop = off_centre(Scene(photo, (centred, beside)))
    assert crop.size == (140, 210)
    kept = next(thing for thing in crop.things if thing.category == "cat")
    assert kept.size == (60, 80)
    assert kept.mask.sum() == mask.sum()
    y, x = kept.centre
    assert np.hypot(y / 140 - 0.5, x / 210 - 0.5) > 0.3
    top, left = int(60 - kept.box[1]), int(110 - kept.box[0])
    assert (crop.photo == photo[top : top + 140, left : left + 210]).all()


def test_an_object_that_a_crop_cuts_up_is_ignored_and_one_that_fills_the_photo_gives_no_crop():
    photo = np.zeros((200, 300, 3), dtype=np.uint8)
    large = Thing("cat", (20.0, 20.0, 150.0, 180.0))
    cut = Thing("dog", (250.0, 150.0, 300.0, 200.0))
    crop = off_centre(Scene(photo, (large, cut)))
    assert {thing.category: thing.ignored for thing in crop.things}["dog"]
    assert off_centre(Scene(photo, (Thing("cat", (0.0, 0.0, 300.0, 200.0)),))) is None
    assert off_centre(Scene(photo, ())) is None


def test_rings_hold_equally_many_places_and_grow_outwards():
    marks = mark(Scene(np.zeros((90, 130, 3), dtype=np.uint8), ()))
    counts = np.bincount(marks.ring)
    assert counts.max() - counts.min() <= 1
    distance = np.hypot(*((marks.points / [90, 130] - 0.5).T))
    assert all(distance[marks.ring == i].max() <= distance[marks.ring == i + 1].min() for i in range(11))


def test_places_on_an_ignored_object_do_not_count_unless_another_lies_there():
    photo = np.zeros((40, 60, 3), dtype=np.uint8)
    marks = mark(Scene(photo, (Thing("cat", (0, 0, 30, 40)), Thing("dog", (20, 0, 60, 40), None, True))))
    x = marks.points[:, 1]
    assert (marks.valid == (x < 30)).all()
