"""Score, evaluate and train take or refuse the same folders, and see the same objects in what they take."""

import pytest
from variants import REFUSED, TAKEN, Perfect, by_evaluate, by_score, by_train, refusal, second, turned_on_their_sides

from deformscope.datasets.coco import read_coco
from deformscope.metrics.coco import average_precision, evaluate
from deformscope.score.scenes import open_folder
from deformscope.training.sources import CocoFolder


@pytest.mark.parametrize("variant", TAKEN)
def test_what_is_taken_is_taken_alike(folder, variant):
    expected = by_score(folder.root, "val")
    assert [len(own) for own in expected.values()] == [2, 1, 0, 2]
    TAKEN[variant](folder)
    folder.write()
    assert by_score(folder.root, "val") == expected
    assert by_train(folder.root, "val") == expected
    assert by_evaluate(folder.root, "val", expected) == pytest.approx([100, 100, 100])


def test_photos_that_exif_turns_are_taken_alike(folder):
    turned_on_their_sides(folder)
    folder.images[:] = [image for image in folder.images if image["height"] != image["width"]]  # the others do not tell
    folder.write()
    expected = by_score(folder.root, "val")
    assert expected["1.png"][0][1] == (60 - 32, 10, 60 - 12, 40)  # was 10, 12, 40, 32 of 80 × 60 px, now of 60 × 80
    assert by_train(folder.root, "val") == expected
    truth = read_coco(folder.root).truth()
    found = [{**one, "score": 0.9} for one in truth["annotations"] if not one["iscrowd"]]
    for kind in ("bbox", "segm"):
        assert average_precision(truth, found, kind=kind)["ap"] == pytest.approx(100)


@pytest.mark.parametrize("variant", REFUSED)
def test_what_is_refused_is_refused_alike_in_one_line_that_names_it(folder, variant):
    expected = by_score(folder.root, "val")
    change, words = REFUSED[variant]
    change(folder)
    folder.write()
    messages = {
        refusal(by_score, folder.root, "val"),
        refusal(by_train, folder.root, "val"),
        refusal(by_evaluate, folder.root, "val", expected),
    }
    (message,) = messages
    assert words in message and str(folder.annotations) in message
    assert "\n" not in message


@pytest.mark.parametrize("broken", ["refuse", "skip"])
def test_a_broken_annotation_is_left_out_by_all_where_that_is_wished(folder, broken):
    second(bbox=[1, 2, 0, 4])(folder)
    first_photo_less = {**by_score(folder.root, "val")}
    del first_photo_less["1.png"][1]
    folder.write()
    if broken == "refuse":
        refusal(open_folder, folder.root)
        refusal(CocoFolder, folder.root, "val")
        return
    photos = open_folder(folder.root, broken="skip")
    assert sorted(len(photos.scene(i).things) for i in range(4)) == [0, 1, 1, 2]
    source = CocoFolder(folder.root, "val", broken="skip")
    assert [len(source.load(i).boxes) for i in range(4)] == [1, 1, 0, 2]
    scores = evaluate(Perfect(first_photo_less), read_coco(folder.root, broken="skip"))
    assert scores[0].ap == pytest.approx(100)
