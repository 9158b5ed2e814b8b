"""The reader of COCO's layout: where it looks, what it takes, what it refuses, and in which words."""

import json
import os

import pytest
from reading import BOXES, refused

from deformscope.datasets.coco import read_coco
from deformscope.datasets.photos import annotation_file
from deformscope.errors import DeformscopeError, DeformscopeWarning


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


NAMES = {
    "backslash": ("a/photo.png", "a\\photo.png"),
    "case": ("Photo.png", "photo.PNG"),
    "blank": ("my photo.png", "my%20photo.png"),
    "blank on the disk": ("my%20photo.png", "my photo.png"),
    "NFD in the file": ("h\u00fctte.png", "hu\u0308tte.png"),
    "NFC in the file": ("hu\u0308tte.png", "h\u00fctte.png"),
    "split's folder": ("a/b.png", ".\\A\\B.png"),
}


@pytest.mark.parametrize("variant", NAMES)
def test_names_that_systems_write_otherwise_are_found_and_named(folder, variant):
    there, noted = NAMES[variant]
    (folder.photos / there).parent.mkdir(exist_ok=True)
    (folder.photos / "1.png").rename(folder.photos / there)
    folder.images[0]["file_name"] = noted
    with pytest.warns(DeformscopeWarning, match="1 names differ from those of the files in slashes, case"):
        data = read_coco(folder.write())
    assert data.photos[0].path == folder.photos / there and data.photos[0].file_name == noted
    assert data.photos[0].read().shape == (60, 80, 3)


def test_backslashes_before_every_name_do_not_hide_the_folder(folder):
    folder.photos.rename(folder.root / "pictures")
    for image in folder.images:
        image["file_name"] = f"pictures\\{image['file_name']}"
    data = read_coco(folder.write())
    assert [photo.path.name for photo in data.photos] == ["1.png", "2.png", "3.png", "4.png"]


def test_a_name_that_means_two_files_is_refused_with_both(folder):
    (folder.photos / "1.png").rename(folder.photos / "A.png")
    (folder.photos / "a.PNG").write_bytes((folder.photos / "A.png").read_bytes())
    folder.images[0]["file_name"] = "a.png"
    refused(folder.write(), "a.png: no such file below", "and 2 with similar names: A.png and a.PNG")


@pytest.mark.parametrize("name", ["..%2fsecret.png", "%2e%2e/secret.png", "..\\secret.png", "%2Fsecret.png"])
def test_no_spelling_of_a_name_leaves_the_folder(folder, name):
    (folder.root / "secret.png").write_bytes((folder.photos / "1.png").read_bytes())
    folder.images[0]["file_name"] = name
    refused(folder.write(), "no such file below")


@pytest.mark.parametrize("name", ["1.png", "./1.png", "1.PNG", "x/../1.png"])
def test_two_images_with_the_same_file_are_a_problem(folder, name):
    (folder.photos / "x").mkdir()
    folder.images[2]["file_name"] = name
    folder.images[2] |= {"height": 60, "width": 80}
    folder.objects[:] = [one for one in folder.objects if one["image_id"] != 3]
    refused(folder.write(), "1.png: image 1: 2 images have this file; keep one of them, with all objects")
    assert [photo.id for photo in read_coco(folder.root, broken="skip").photos] == [2, 4]


# how the file is written


@pytest.mark.parametrize(
    ("text", "twice", "words"),
    [
        ('"area": 600', '"area": 600, "area": 601', "the key area occurs more than once in one object (id 100)"),
        ('"id": 100', '"id": 100, "id": 999', "the key id occurs more than once in one object"),
        ('"images":', '"images": [], "images":', "the key images occurs more than once in one object"),
        ('"name": "dog"', '"name": "dog", "name": "cow"', "the key name occurs more than once in one object (id 7)"),
    ],
)
@pytest.mark.parametrize("broken", ["refuse", "skip"])
def test_a_key_with_two_values_is_refused(folder, text, twice, words, broken):
    folder.write()
    content = folder.annotations.read_text()
    assert text in content
    folder.annotations.write_text(content.replace(text, twice, 1))
    refused(folder.root, str(folder.annotations), words, "keep one of its values", broken=broken)
    folder.annotations.write_text(content.replace(text, f"{text}, {text}" if text != '"images":' else text, 1))
    assert len(read_coco(folder.root).photos) == 4  # the same value twice is none lost


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
