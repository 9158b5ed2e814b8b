"""Annotations and photos of a folder: crowds, areas, what is broken and named, what is skipped."""

import inspect

import numpy as np
import pytest
from PIL import Image
from reading import refused

from deformscope.datasets.coco import read_coco
from deformscope.errors import DeformscopeError


@pytest.mark.parametrize("key", ["iscrowd", "ignore", "difficult"])
@pytest.mark.parametrize("value", [1, True, "1", 1.0])
def test_crowds_and_difficult_objects_are_ignored(folder, key, value):
    folder.objects[0] |= {key: value}
    folder.objects[1] |= {"iscrowd": None, "ignore": 0, "difficult": "0"}
    data = read_coco(folder.write())
    assert [one.ignored for one in data.photos[0].objects] == [True, False]
    assert [one["iscrowd"] for one in data.truth()["annotations"]] == [1, 0, 0, 0, 1]


def test_a_missing_area_is_the_masks_or_the_boxs_and_0_is_an_area(folder):
    triangle = [10, 12, 40, 12, 10, 32]
    folder.objects[0] |= {"area": None, "segmentation": [triangle]}
    del folder.objects[1]["area"], folder.objects[1]["segmentation"]
    folder.objects[2] |= {"area": 0, "segmentation": []}
    folder.objects[3] |= {"area": 17}
    areas = [one["area"] for one in read_coco(folder.write()).truth()["annotations"]]
    assert areas[0] == pytest.approx(300, abs=30)
    assert areas[1:4] == [25 * 33, 0, 17]


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
