"""AP resampled over photos: the library's AP on the photos as they are, and paired between runs."""

import json

import numpy as np
import pytest

from deformscope.metrics.coco import average_precision
from deformscope.training import run_folder
from deformscope.training.datamodule import source
from deformscope.training.report import markdown
from deformscope.training.run_folder import Result
from deformscope.training.summary import of_run, resampled, summarise


def truth_and_answers(seed, photos=12, shift=0.15):
    """Random objects of three classes, the third of them all crowds, and detections around them with tied scores."""
    random = np.random.default_rng(seed)
    objects, answers = [], []
    for image in range(photos):
        for _ in range(random.integers(0, 5)):
            x, y, w, h = random.uniform((0, 0, 20, 20), (60, 60, 50, 50))
            category = int(random.integers(1, 4))
            crowd = int(category == 3 or random.random() < 0.2)
            objects.append(
                {"id": len(objects) + 1, "image_id": image, "category_id": category, "iscrowd": crowd, "area": w * h}
                | {"bbox": [x, y, w, h]}
            )
            for _ in range(3):
                box = np.array([x, y, w, h]) + random.normal(0, shift, 4) * [w, h, w, h]
                guess = category if random.random() < 0.8 else 1
                score = round(float(random.random()), 1)
                answers.append(
                    {"image_id": image, "category_id": guess, "bbox": np.maximum(box, 1).tolist(), "score": score}
                )
    categories = [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "flock", "none"), 1)]
    images = [{"id": i, "width": 120, "height": 120, "file_name": f"{i}.png"} for i in range(photos)]
    return {"images": images, "annotations": objects, "categories": categories}, answers


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("classes", [(), ("dog",)])
def test_on_the_photos_as_they_are_it_is_the_librarys_ap(seed, classes):
    truth, answers = truth_and_answers(seed)
    assert resampled(truth, answers, classes, draws=0)[0] == pytest.approx(
        average_precision(truth, answers, classes)["ap"], abs=1e-9
    )


def test_a_draw_is_the_ap_of_the_photos_drawn():
    truth, answers = truth_and_answers(1, photos=6)
    drawn = resampled(truth, answers, draws=6)
    weights = np.random.default_rng(0).multinomial(6, [1 / 6] * 6, size=6)
    for weight, ap in zip(weights, drawn[1:], strict=True):
        copies = [(image, copy) for image, count in enumerate(weight) for copy in range(count)]
        names = {pair: number for number, pair in enumerate(copies)}
        images = [truth["images"][image] | {"id": names[image, copy]} for image, copy in copies]
        again = [
            [one | {"image_id": names[pair]} for pair in copies for one in part if one["image_id"] == pair[0]]
            for part in (truth["annotations"], answers)
        ]
        objects = [one | {"id": number + 1} for number, one in enumerate(again[0])]
        expected = average_precision(truth | {"images": images, "annotations": objects}, again[1])["ap"]
        # Equal scores may stand in another order among the copies.
        assert ap == pytest.approx(expected, abs=6)


def test_a_run_counts_the_photos_that_its_recipe_evaluates(tiny, tmp_path):
    recipe = tiny("evaluation.photos=3")
    run_folder.claim(recipe, tmp_path)
    right = [{**one, "score": 0.9} for one in source(recipe, "val").truth()["annotations"] if one["image_id"] < 3]
    for answers, expected in ((right, lambda ap: ap == pytest.approx(100)), (right[1:], lambda ap: ap < 100)):
        (tmp_path / run_folder.DETECTIONS).write_text(json.dumps(answers))
        assert expected(of_run(tmp_path)[0])


def result(mode, seed, ap):
    return Result("shapes", "0" * 16, mode, seed, 100, 12.3, "two cores", {"ap": ap})


def test_differences_are_taken_draw_by_draw_and_averaged_over_the_seeds():
    common = np.random.default_rng(0).normal(30, 5, 301)
    gaps = {0: 1.0, 1: 3.0}
    runs = [result(mode, seed, 30 + gap * (mode == "full")) for seed, gap in gaps.items() for mode in ("none", "full")]
    draws = {("none", seed): common for seed in gaps} | {("full", seed): common + gap for seed, gap in gaps.items()}
    (difference,) = summarise(runs, "ap", draws).differences
    assert difference.photos == pytest.approx((2.0, 2.0))
    assert "+2.00 … +2.00" in markdown(runs, resampled=draws)
    del draws["full", 1]
    assert summarise(runs, "ap", draws).differences[0].photos is None
