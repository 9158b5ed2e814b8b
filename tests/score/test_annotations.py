"""Annotated folders as the claims are measured on, and crops that move objects off the centre."""

import numpy as np
import pytest

from deformscope.score.scenes import Scene, Thing, mark, off_centre, open_folder


def test_a_folder_and_its_annotation_file_give_the_same_photos_in_one_fixed_order(folder):
    photos = open_folder(folder)
    assert photos == open_folder(folder / "annotations" / "instances_val.json")
    assert sorted(image.id for image in photos.images) == list(range(14))
    assert [image.id for image in photos.images] != list(range(14))
    index = next(i for i, image in enumerate(photos.images) if image.id == 2)
    things = photos.scene(index).things
    assert [thing.category for thing in things] == ["cat", "dog", "cat"]
    assert [thing.ignored for thing in things] == [False, False, True]
    for thing in things:
        x0, y0, x1, y1 = (int(value) for value in thing.box)
        assert thing.mask.sum() == pytest.approx((x1 - x0) * (y1 - y0), rel=0.15)
        assert thing.mask[(y0 + y1) // 2, (x0 + x1) // 2]


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
