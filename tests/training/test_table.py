"""The ablation's table and its statistics."""

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from deformscope.detectors import set_offset_mode
from deformscope.errors import DeformscopeError
from deformscope.metrics.coco import average_precision, scores
from deformscope.training.ablation import at_test_time, trained
from deformscope.training.report import markdown, table_csv, write
from deformscope.training.run import train
from deformscope.training.run_folder import Result
from deformscope.training.shapes import ShapesSet
from deformscope.training.summary import PAPER, summarise


def result(mode, seed, ap, **scores):
    return Result("shapes", "f" * 16, mode, seed, 100, 12.3, "a machine", {"ap": ap, "ap50": 2 * ap} | scores)


AP = {"none": [10.0, 12.0, 11.0], "feature": [10.5, 12.7, 11.3], "kernel": [13.0, 15.5, 14.5], "full": [13.5, 15, 15]}


@pytest.fixture
def results():
    return [result(mode, seed, ap) for mode, values in AP.items() for seed, ap in enumerate(values)]


def test_means_spreads_and_paired_differences(results):
    summary = summarise(results)
    assert summary.mean("kernel") == pytest.approx(np.mean(AP["kernel"]))
    assert summary.spread("kernel") == pytest.approx(np.std(AP["kernel"], ddof=1))
    one = next(d for d in summary.differences if (d.over, d.under) == ("kernel", "none"))
    gaps = np.array(AP["kernel"]) - AP["none"]
    assert one.mean == pytest.approx(gaps.mean())
    assert gaps.min() <= one.bootstrap[0] < one.mean < one.bootstrap[1] <= gaps.max()
    reach = 4.30265 * gaps.std(ddof=1) / np.sqrt(3)
    assert one.student == pytest.approx((gaps.mean() - reach, gaps.mean() + reach), abs=1e-4)


def test_students_interval_is_scipys_of_the_paired_differences():
    random = np.random.default_rng(2)
    for seeds in (2, 3, 12, 40):
        none, full = random.normal(20, 1, seeds), random.normal(21, 1, seeds)
        runs = [
            result(mode, s, ap) for mode, one in (("none", none), ("full", full)) for s, ap in enumerate(one.tolist())
        ]
        expected = stats.ttest_rel(full, none).confidence_interval(0.95)
        assert summarise(runs).differences[0].student == pytest.approx((expected.low, expected.high))


def test_a_seed_that_only_one_mode_has_is_in_no_difference(results):
    summary = summarise([*results, result("full", 7, 99.0)])
    one = next(d for d in summary.differences if (d.over, d.under) == ("full", "none"))
    assert one.seeds == 3
    assert one.mean < 10


def test_an_unfinished_ablation_has_a_table_too(results):
    some = [r for r in results if r.offset_mode in ("none", "full") and r.seed == 0]
    text = markdown(some)
    assert "| AP | 10.00 | 13.50 |" in text
    assert "+3.50 … +3.50 | – | – | 1 |" in text
    with pytest.raises(DeformscopeError, match="measure='mask_ap': no run has it"):
        summarise(some, "mask_ap")


def test_all_files_are_written_and_say_the_same(results, tmp_path):
    files = write(results, tmp_path, command="deformscope ablate shapes")
    assert [path.name for path in files] == ["ablation.md", "ablation.csv", "ablation.json", "ablation.png"]
    text = files[0].read_text()
    assert "    deformscope ablate shapes\n" in text
    assert "| AP | 11.00 ± 1.00 | 11.50 ± 1.11 | 14.33 ± 1.26 | 14.50 ± 0.87 |" in text
    assert "| paper: Faster R-CNN, box (COCO) | 37.4 | 38.0 | 41.3 | 41.6 |" in text
    rows = list(csv.DictReader(io.StringIO(files[1].read_text())))
    assert [float(row["ap"]) for row in rows] == [value for values in AP.values() for value in values]
    content = json.loads(files[2].read_text())
    assert len(content["runs"]) == 12
    assert content["paper"] == PAPER
    assert files[3].read_bytes().startswith(b"\x89PNG")


def test_a_missing_measure_is_an_empty_cell():
    text = table_csv([result("none", 0, 1.0, ap_large=None)])
    assert text.splitlines() == ["offset_mode,seed,steps,seconds,ap,ap50,ap_large", "none,0,100,12.3,1.0,2.0,"]


def test_perfect_answers_have_an_ap_of_100_and_none_one_of_0(tiny):
    truth = ShapesSet(tiny("data.shapes.one_class=false").data.shapes, "val").truth()
    perfect = [
        {k: one[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.5} for one in truth["annotations"]
    ]
    found = average_precision(truth, perfect)
    assert found["ap"] == found["ap50"] == pytest.approx(100)
    names = {one["category_id"] for one in truth["annotations"]}
    assert sum(found[f"ap/{c['name']}"] is not None for c in truth["categories"]) == len(names)
    assert average_precision(truth, [])["ap"] == 0
    some = [one for one in perfect if one["category_id"] != 1]
    assert average_precision(truth, some)["ap/ellipse"] == 0
    assert average_precision(truth, some, ["box", "cross"])["ap"] == pytest.approx(100)
    first = scores(truth, [one for one in perfect if one["image_id"] == 0], photos=1)
    assert first["ap"] == pytest.approx(100)


def test_offsets_replaced_at_test_time_leave_the_detector_as_it_was(tiny, tmp_path):
    recipe = tiny("optimiser.lr=0.01", "run.precision=bf16")
    run = train(recipe, tmp_path / "run", progress=False)
    kept, detector = trained(str(tmp_path / "run" / "last.ckpt"))
    assert kept == recipe
    found = at_test_time(recipe, detector, report=lambda line: None)
    assert [one.offset_mode for one in found] == ["none", "feature", "kernel", "full"]
    # The whole offsets are the detector itself; it is judged in float32, however it learned.
    assert found[3].scores == pytest.approx(run.scores)
    assert {head.deform.offset_mode for head in detector.heads.values()} == {"full"}
    assert "replaced at test time" in markdown(found)
    set_offset_mode(detector, "kernel")
    with pytest.raises(DeformscopeError, match="was trained with offset_mode='kernel'"):
        at_test_time(recipe, detector)
