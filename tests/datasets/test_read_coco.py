"""The reader of COCO's layout: where it looks, what it takes, what it refuses, and in which words."""

import inspect
import json
import os

import numpy as np
import pytest
from PIL import Image

from deformscope.datasets.coco import read_coco
from deformscope.datasets.locate import annotation_file
from deformscope.errors import DeformscopeError

BOXES = [(10.0, 12.0, 40.0, 32.0), (40.0, 5.0, 65.0, 38.0)]


def refused(data, *words, **settings):
    with pytest.raises(DeformscopeError) as raised:
        read_coco(data, **settings)
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def test_photos_and_categories_are_sorted_by_id_and_objects_lie_with_their_photos(folder):
    folder.images.reverse()
    data = read_coco(folder.write())
    assert [photo.id for photo in data.photos] == [1, 2, 3, 4]
    assert data.names == ("cat", "dog")  # ids 3 and 7, listed the other way round
    first, *_, last = data.photos
    assert [first.corners(one) for one in first.objects] == BOXES
    assert [one.label for one in first.objects] == [1, 1]
    assert [one.ignored for one in last.objects] == [False, True]
    assert first.mask(first.objects[0]).sum() == 30 * 20
    assert first.read().shape == (60, 80, 3)
    assert data.truth() == {
        "images": sorted(folder.images, key=lambda image: image["id"]),
        "annotations": folder.objects,
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


# where things lie


@pytest.mark.parametrize(
    ("annotations", "photos", "split"),
    [
        ("annotations/instances_val.json", "val", "val"),
        ("annotations/instances_val2017.json", "val2017", "val"),
        ("annotations/instances_val2017.json", "images/val2017", "val2017"),
        ("annotations/instances_val.json", "images/val", "val"),
        ("annotations/instances_val.json", "images", "val"),
        ("annotations/instances_val_masks.json", "val", "val"),
        ("annotations/instances_val.json", "val2017", "val"),
        ("annotations/val.json", "val", "val"),
        ("instances_val.json", "val", "val"),
        ("val/_annotations.coco.json", "val", "val"),
        ("labels.json", ".", None),
        ("labels.json", "pictures", None),
        ("elsewhere/labels.json", "elsewhere/images", None),
        ("annotations/instances_val.json", "näher", None),
    ],
)
def test_annotations_and_photos_are_found(folder, annotations, photos, split):
    target = folder.root / photos
    target.mkdir(parents=True, exist_ok=True)
    if photos in ("pictures", "näher"):
        for image in folder.images:
            image["file_name"] = f"{photos}/{image['file_name']}"
    if target != folder.photos:
        for photo in list(folder.photos.iterdir()):
            photo.rename(target / photo.name)
        folder.photos.rmdir()
    folder.annotations.unlink()
    folder.annotations = folder.root / annotations
    folder.write()
    data = read_coco(folder.annotations) if split is None else read_coco(folder.root, split)
    assert data.annotations == folder.annotations
    assert [photo.path.name for photo in data.photos] == ["1.png", "2.png", "3.png", "4.png"]
    assert data.photos[1].read().shape == (90, 64, 3)
    if split is not None:
        assert read_coco(folder.annotations) == data


def test_the_photos_folder_is_the_longest_name_that_begins_the_splits_and_holds_the_photos(folder):
    (folder.root / "v").mkdir()
    (folder.root / "val_m").mkdir()  # longer still, and empty
    folder.annotations.rename(folder.annotations.with_name("instances_val_masks.json"))
    assert read_coco(folder.root).folder == folder.photos


def test_the_shortest_name_that_begins_like_the_split_is_taken_and_the_newest_of_equals(tmp_path):
    (tmp_path / "annotations").mkdir()
    for name in ("val2014", "val2017", "val_masks", "train"):
        (tmp_path / "annotations" / f"instances_{name}.json").write_text("{}")
    assert annotation_file(tmp_path).name == "instances_val2017.json"
    (tmp_path / "annotations" / "instances_val.json").write_text("{}")
    assert annotation_file(tmp_path).name == "instances_val.json"


def test_what_is_missing_is_said(folder, tmp_path):
    refused(tmp_path / "nowhere", "no such file or folder", "COCO's layout")
    refused(folder.root, "no annotations/instances_test.json", "there: instances_val.json", "split", split="test")
    folder.photos.rename(folder.root / "elsewhere")
    refused(folder.root, "no folder of photos named like val", "images")


def test_a_pipe_is_neither_photo_nor_annotations(folder):
    (folder.photos / "1.png").unlink()
    os.mkfifo(folder.photos / "1.png")
    refused(folder.root, "1.png: no such file below")
    os.mkfifo(folder.root / "pipe.json")
    refused(folder.root / "pipe.json", "no such file or folder")


# how the file is written


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_do_not_matter(folder, encoding):
    folder.content["categories"][0]["name"] = "狗"
    expected = read_coco(folder.write())
    assert read_coco(folder.write(encoding)) == expected
    assert expected.names == ("cat", "狗")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no COCO annotations (JSONDecodeError"),
        ("{", "no COCO annotations (JSONDecodeError"),
        ("[]", "expected an object with the lists images"),
        ("{}", "images: None"),
        ('{"images": 3}', "images: 3"),
        ('{"images": [1], "annotations": []}', "categories: None"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}', "no folder of photos"),
        ("[" * 100_000, "no COCO annotations (RecursionError"),
        ("1" * 10_000, "no COCO annotations (ValueError"),
        ("\udcff", "no COCO annotations (UnicodeDecodeError"),
    ],
    ids=range(10),
)
def test_what_is_no_annotation_file_is_one_line(folder, text, words):
    folder.photos.rename(folder.root / "p")
    folder.annotations.write_bytes(text.encode(errors="surrogateescape"))
    refused(folder.root, words)


def test_no_photo_at_all_is_an_error_and_no_zero(folder):
    folder.content["images"] = folder.content["annotations"] = []
    refused(folder.write(), "no photo to use")


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        ([], "categories: none"),
        ([3], "categories[0]: 3; expected an id and a name"),
        ([{"name": "cat"}], "expected an id and a name"),
        ([{"id": 3, "name": None}], "expected an id and a name"),
        ([{"id": 3, "name": "cat"}, {"id": 3.0, "name": "dog"}], "the id 3 occurs more than once"),
        ([{"id": 3, "name": "cat"}, {"id": 7, "name": "cat"}], "the name cat occurs more than once"),
    ],
)
def test_categories_that_are_none_are_refused(folder, categories, words):
    folder.content["categories"] = categories
    refused(folder.write(), words)


# ids of any kind


def renamed(content, image, one, category):
    """The content with other ids."""
    content = json.loads(json.dumps(content))
    for entry in content["images"]:
        entry["id"] = image(entry["id"])
    for place, entry in enumerate(content["annotations"]):
        entry |= {
            "id": one(place),
            "image_id": image(entry["image_id"]),
            "category_id": category(entry["category_id"]),
        }
    for entry in content["categories"]:
        entry["id"] = category(entry["id"])
    return content


@pytest.mark.parametrize(
    "ids",
    [
        (lambda i: i - 1, lambda i: i, lambda i: 10 * i - 30),
        (str, str, str),
        (float, float, float),
        (lambda i: f"photo {i}", lambda i: f"object {i}", lambda i: f"class {i}"),
        (lambda i: i + 0.5, lambda i: -i, lambda i: -10 + i),
        (lambda i: 10**17 + i, lambda i: 10**30 + i, lambda i: i),
    ],
    ids=["zero", "texts of numbers", "whole floats", "texts", "floats and negative", "large"],
)
def test_ids_of_any_kind_give_the_same_photos(folder, ids):
    expected = read_coco(folder.root)
    folder.content = renamed(folder.content, *ids)
    data = read_coco(folder.write())
    assert data.names == expected.names
    for mine, theirs in zip(data.photos, expected.photos, strict=True):
        assert (mine.path, mine.size) == (theirs.path, theirs.size)
        assert [(o.label, o.bbox, o.ignored) for o in mine.objects] == [
            (o.label, o.bbox, o.ignored) for o in theirs.objects
        ]


def test_texts_of_numbers_are_sorted_as_numbers(folder):
    for image in folder.images:
        image["id"] = str(image["id"] * 5)  # 5, 10, 15, 20
    for one in folder.objects:
        one["image_id"] *= 5  # and these are numbers still
    data = read_coco(folder.write())
    assert [photo.id for photo in data.photos] == ["5", "10", "15", "20"]
    assert [len(photo.objects) for photo in data.photos] == [2, 1, 0, 2]


def test_an_id_that_is_one_photos_number_and_anothers_text_means_the_one_of_its_own_kind(folder):
    folder.images[2]["id"] = "2"
    folder.objects[2]["image_id"] = "2"
    with pytest.raises(DeformscopeError, match="outside the photo, 64×64"):  # its box is 70 px high
        read_coco(folder.write())
    folder.objects[2]["image_id"] = 2
    assert {photo.id: len(photo.objects) for photo in read_coco(folder.write()).photos} == {1: 2, 2: 1, "2": 0, 4: 2}


# numbers, flags and areas


def test_numbers_as_texts_are_numbers(folder):
    expected = read_coco(folder.root)
    for image in folder.images:
        image |= {"height": str(image["height"]), "width": f" {image['width']}.0"}
    for one in folder.objects:
        one |= {"bbox": [str(v) for v in one["bbox"]], "area": str(one["area"]), "iscrowd": str(one["iscrowd"])}
        one["segmentation"] = [[f"{v}.0" for v in one["segmentation"][0]]]
    data = read_coco(folder.write())
    assert [photo.size for photo in data.photos] == [photo.size for photo in expected.photos]
    assert [photo.objects for photo in data.photos] == [photo.objects for photo in expected.photos]


@pytest.mark.parametrize("value", ["nan", "inf", "1_0", "1,5", "0x10", "", "ten", "１", "1" * 200])
def test_texts_that_spell_no_plain_number_are_none(folder, value):
    folder.objects[0]["bbox"][2] = value
    refused(folder.write(), "1.png, annotation 100: bbox", "expected four numbers")


@pytest.mark.parametrize("key", ["iscrowd", "ignore", "difficult"])
@pytest.mark.parametrize("value", [1, True, "1", 1.0])
def test_crowds_and_difficult_objects_are_ignored(folder, key, value):
    folder.objects[0] |= {key: value}
    folder.objects[1] |= {"iscrowd": None, "ignore": 0, "difficult": "0"}
    data = read_coco(folder.write())
    assert [one.ignored for one in data.photos[0].objects] == [True, False]
    assert [one["iscrowd"] for one in data.truth()["annotations"]] == [1, 0, 0, 0, 1]


def test_a_missing_area_is_the_masks_or_the_boxs(folder):
    triangle = [10, 12, 40, 12, 10, 32]
    folder.objects[0] |= {"area": None, "segmentation": [triangle]}
    del folder.objects[1]["area"], folder.objects[1]["segmentation"]
    folder.objects[2] |= {"area": 0, "segmentation": []}
    folder.objects[3] |= {"area": 17}
    areas = [one["area"] for one in read_coco(folder.write()).truth()["annotations"]]
    assert areas[0] == pytest.approx(300, abs=30)
    assert areas[1:4] == [25 * 33, 50 * 70, 17]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"iscrowd": "maybe"}, "iscrowd maybe: expected 0 or 1"),
        ({"iscrowd": 2}, "iscrowd 2: expected 0 or 1"),
        ({"difficult": []}, "difficult []: expected 0 or 1"),
        ({"area": "large"}, "area large: expected px²"),
        ({"area": -3}, "area -3: expected px²"),
        ({"area": float("nan")}, "area nan: expected px²"),
        ({"area": 1e11}, "area 100000000000.0: expected px², at least 0, at most the photo's 4800"),
        ({"category_id": 4}, "category_id 4: unknown"),
        ({"category_id": None}, "category_id None: unknown"),
        ({"bbox": None}, "bbox None: expected four numbers"),
        ({"bbox": [1, 5, 3]}, "bbox [1, 5, 3]: expected four numbers"),
        ({"bbox": {}}, "bbox {}: expected four numbers"),
        ({"bbox": [1, 5, 3, True]}, "bbox [1, 5, 3, True]: expected four numbers"),
        ({"bbox": [1, 5, 3, 10**400]}, "expected four numbers"),
        ({"bbox": [1, 5, 0, 3]}, "bbox [1, 5, 0, 3]: zero area"),
        ({"bbox": [1, 5, 4, -3]}, "zero area"),
        ({"bbox": [1, 5, 4, 1e-320]}, "zero area"),
        ({"bbox": [-0.9, 5, 0.5, 9]}, "outside the photo"),  # by less than a pixel, but wholly
        ({"bbox": [-9, 5, 20, 10]}, "bbox [-9, 5, 20, 10]: outside the photo, 80×60 px"),
        ({"bbox": [70, 5, 25, 33]}, "outside the photo, 80×60 px"),
    ],
)
def test_a_broken_annotation_is_named_by_file_and_id(folder, change, words):
    folder.objects[1] |= change
    refused(folder.write(), f"{folder.annotations}: 1 broken", "1.png, annotation 101: ", words, "broken=skip")
    left = read_coco(folder.root, broken="skip")
    assert [one.id for one in left.photos[0].objects] == [100]
    assert [(problem.file_name, problem.annotation) for problem in left.problems] == [("1.png", 101)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": 100}, "1.png, annotation 100: its id occurs more than once"),
        ({"id": None}, "1.png, annotations[1]: id None: expected a number or a text"),
        ({"id": [1]}, "1.png, annotations[1]: id [1]: expected"),
        ({"image_id": 9}, "image 9, annotation 101: no such image"),
        ({"image_id": True}, "image True, annotation 101: no such image"),
    ],
)
def test_an_annotation_without_a_place_is_named_too(folder, change, words):
    folder.objects[1] |= change
    refused(folder.write(), words)
    assert [one.id for one in read_coco(folder.root, broken="skip").photos[0].objects] == [100]


@pytest.mark.parametrize("key", ["id", "image_id", "category_id", "bbox"])
def test_a_missing_key_of_an_annotation_is_named(folder, key):
    del folder.objects[1][key]
    refused(folder.write(), key, "missing" if key != "category_id" else "category_id missing: unknown")


def test_entries_that_are_no_objects_are_named_by_their_place(folder):
    folder.objects.append(None)
    folder.images.append("5.png")
    refused(
        folder.write(), "2 broken", "images[4]: 5.png: expected an object", "annotations[5]: None: expected an object"
    )


# the photos


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file_name": "x.png"}, "x.png: no such file below"),
        ({"file_name": "../1.png"}, "../1.png: outside the folder of photos"),
        ({"file_name": "../val/../../secret.png"}, "outside the folder of photos"),
        ({"file_name": "/etc/passwd"}, "/etc/passwd: outside the folder of photos"),
        ({"file_name": "."}, "outside the folder of photos"),
        ({"file_name": "a\nb.png"}, "'a\\nb.png': no such file"),
        ({"file_name": "a\0b.png"}, "no such file"),
        ({"file_name": "x" * 5000}, "no such file"),
        ({"file_name": 7}, "images[0]: file_name 7: expected a text"),
        ({"file_name": "\ud800.png"}, "expected a text"),
        ({"id": None}, "1.png: image id None: expected a number or a text"),
        ({"id": 2}, "1.png: its image id 2 occurs more than once"),
        ({"height": 61}, "1.png: 80×60 px where the annotations say 80×61"),
        ({"height": 80, "width": 60}, "80×60 px where the annotations say 60×80"),
        ({"height": None}, "1.png: height None and width 80: expected whole numbers"),
        ({"width": -80}, "width -80: expected whole numbers"),
        ({"width": 80.5}, "width 80.5: expected whole numbers"),
    ],
)
def test_a_broken_photo_is_named(folder, change, words):
    folder.images[0] |= change
    refused(folder.write(), words)
    left = read_coco(folder.root, broken="skip")
    assert 1 not in [photo.id for photo in left.photos]
    # Their objects go with them, and are no problems of their own.
    assert all(problem.annotation is None for problem in left.problems if "id" not in change)


def test_a_photo_that_is_none_is_named_before_anything_is_done(folder):
    (folder.photos / "1.png").write_bytes(b"")
    (folder.photos / "2.png").write_text("<html>not found</html>")
    Image.new("1", (20_000, 6_000)).save(folder.photos / "3.png")
    folder.images[2] |= {"height": 6_000, "width": 20_000}
    refused(folder.write(), "1.png: no photo that can be read", "2.png: no photo", "3.png: larger than 100 megapixels")
    assert [photo.id for photo in read_coco(folder.root, broken="skip").photos] == [4]


def test_missing_sizes_are_the_photos(folder):
    expected = read_coco(folder.root).photos
    for image in folder.images:
        del image["height"], image["width"]
    assert read_coco(folder.write()).photos == expected


def test_photos_may_be_links_and_names_may_be_whole_paths_inside(folder, tmp_path):
    expected = read_coco(folder.root).photos[0].read()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for photo in list(folder.photos.iterdir()):
        photo.rename(elsewhere / photo.name)
        photo.symlink_to(elsewhere / photo.name)
    folder.images[0]["file_name"] = str(folder.photos / "1.png")
    assert np.array_equal(read_coco(folder.write()).photos[0].read(), expected)


def test_what_is_skipped_is_all_listed_and_five_are_named(folder):
    for one in folder.objects:
        one["bbox"] = None
    for image in folder.images[:2]:
        image["height"] += 1
    message = refused(folder.write(), "4 broken annotations or photos")  # two of the objects are a broken photo's
    assert message.count("annotation 10") == 2
    assert len(read_coco(folder.root, broken="skip").problems) == 4
    folder.images[2:] = []
    refused(folder.write(), "4 broken")
    with pytest.raises(DeformscopeError, match="no photo to use"):
        read_coco(folder.root, broken="skip")


def test_masks_are_asked_of_all_but_crowds_where_they_are_needed(folder):
    for one in folder.objects:
        one["segmentation"] = []
    assert len(read_coco(folder.write()).photos) == 4
    refused(folder.root, "4 broken", "1.png, annotation 100: no segmentation, where masks are needed", masks=True)


def test_an_object_keeps_its_box_where_its_segmentation_alone_is_broken_and_not_needed(folder):
    folder.objects[1]["segmentation"] = [[1, 2, 3, 4]]
    refused(folder.write(), "1.png, annotation 101: segmentation", "at least three corners")
    kept = read_coco(folder.root, broken="skip").photos[0].objects
    assert [one.segmentation is None for one in kept] == [False, True]
    assert [one.id for one in read_coco(folder.root, broken="skip", masks=True).photos[0].objects] == [100]


def test_an_unknown_word_for_broken_is_refused(folder):
    with pytest.raises(DeformscopeError, match="broken='ignore': expected 'refuse' or 'skip'"):
        inspect.unwrap(read_coco)(folder.root, broken="ignore")  # as users call it, without the tests' checks of types
