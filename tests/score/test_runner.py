"""A run over a folder: the same records however it is shared out or broken off; no bad photo ends it."""

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from deformscope import Analysis, DeformscopeError, OffsetField, load
from deformscope.fields.fields import Fields
from deformscope.metrics.bootstrap import Estimate
from deformscope.score import Scores, Settings, read_scores, runner, score, write_report
from deformscope.score.records import Matched, Measured, Record, View, read_records
from deformscope.score.runner import Kept, claimed, kept
from deformscope.score.scores import METRICS, Part, Row, as_markdown, as_text, verdicts
from deformscope.score.summary import summarise


def lines(folder):
    return {record.index: record for record in read_records(folder)}


def test_a_run_measures_every_photo_against_every_null_and_names_those_it_cannot(run):
    scores, out = run.scores, run.out
    assert len(lines(out)) == 14
    named = {reason: [text.split(":")[0] for text in files] for reason, files in scores.problems.items()}
    assert named == {"photo not readable": ["03.png", "05.png"], "no object": ["07.png"]} or named == {
        "photo not readable": ["05.png", "03.png"],
        "no object": ["07.png"],
    }
    whole = scores.part("whole")
    assert whole.photos == 11
    assert {row.layer for row in whole.rows} == {f"heads.stride{s}.deform" for s in (8, 16, 32)}
    auroc = next(row for row in whole.rows if row.metric.name == "auroc")
    assert set(auroc.sources) == {"field", "fresh", "shuffled", "noise", "centre", "zero", "filled"}
    assert auroc.sources["zero"].value == 0.5
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in auroc.sources.values())
    assert auroc.sources["fresh"].value != auroc.sources["field"].value
    content = json.loads((out / "scores.json").read_text())
    assert content["run"]["photos"] == 14
    assert {part["name"] for part in content["parts"]} >= {"whole", "crop", "size S", "class cat"}


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_records(run, tmp_path):
    scores, out = run.scores, run.out
    whole = (out / "records.0.jsonl").read_bytes()
    other = tmp_path / "killed"
    other.mkdir()
    (other / "run.json").write_bytes((out / "run.json").read_bytes())
    (other / "records.0.jsonl").write_bytes(whole[: len(whole) // 2])  # in the middle of a line
    done = len(lines(other))
    assert 0 < done < 14
    seen = []
    again = score(run.detector, run.folder, other, Settings(draws=40), progress=lambda state: seen.append(state.done))
    assert seen == list(range(done, 15))
    assert lines(other) == lines(out)
    assert again.to_json() == scores.to_json()


def test_shares_of_two_processes_are_the_whole(run, tmp_path, monkeypatch):
    for name in ("process_group", "wait"):
        monkeypatch.setattr(runner, name, lambda world: nullcontext())
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1", "0"):  # the first makes the folder, and at the end the scores
        monkeypatch.setenv("RANK", rank)
        found = score(run.detector, run.folder, tmp_path / "shared", Settings(draws=40))
        assert (found is None) == (rank == "1")
    assert found.to_json() == run.scores.to_json()
    shares = [list(map(json.loads, (tmp_path / f"shared/records.{rank}.jsonl").open())) for rank in (0, 1)]
    assert [[one["index"] for one in share] for share in shares] == [list(range(7)), list(range(7, 14))]


@pytest.mark.slow
def test_processes_of_torchrun_give_the_same_records(run, tmp_path):

    run.detector.save(tmp_path / "small.safetensors", torch.float32)
    script = tmp_path / "share.py"
    script.write_text(
        "import sys\n"
        "from deformscope import load\n"
        "from deformscope.score import Settings, score\n"
        "scores = score(load(sys.argv[1]), sys.argv[2], sys.argv[3], Settings(draws=40))\n"
        "print('figures' if scores else 'none')\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    source = str(Path(__file__).parents[2] / "src")
    result = subprocess.run(
        [*map(str, command), str(tmp_path / "small.safetensors"), str(run.folder), str(tmp_path / "shared")],
        env=os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert sorted(result.stdout.split()) == ["figures", "none"]
    assert (tmp_path / "shared" / "records.1.jsonl").exists()
    expected, found = lines(run.out), lines(tmp_path / "shared")
    assert found == expected


def test_nan_offsets_are_counted_named_and_not_fatal(small, folder, tmp_path):
    with torch.no_grad():
        small.heads["stride16"].deform.conv_offset.bias[3] = torch.nan
    scores = score(small, folder, tmp_path / "one", Settings(draws=40, max_photos=4))
    scored = [r for r in lines(tmp_path / "one").values() if r.status == "scored"]
    assert len(scores.problems["offsets not finite"]) == len(scored) > 0
    assert scores.problems["offsets not finite"][0].endswith(": heads.stride16.deform")
    assert {row.layer for row in scores.part("whole").rows} == {"heads.stride8.deform", "heads.stride32.deform"}
    with torch.no_grad():
        for head in small.heads.values():
            head.deform.conv_offset.bias[0] = torch.inf
    scores = score(small, folder, tmp_path / "all", Settings(draws=40, max_photos=4))
    assert scores.parts == ()
    assert len(scores.problems["offsets not finite"]) == len(scored)
    assert "not measured" in str(scores)
    assert f"{len(scored)} photos: offsets not finite" in str(scores)
    assert "not measured" in write_report(scores, tmp_path / "all").read_text()


def test_a_folder_of_the_version_with_more_metrics_is_read_and_goes_on(run, tmp_path):
    """Its records, scores and description have what is no longer measured, and lack the annotations' folder."""
    out = tmp_path / "former"
    shutil.copytree(run.out, out)
    records = [json.loads(line) for line in (out / "records.0.jsonl").open()]
    for record in records:
        for view in record["views"].values():
            for measured in (one for sources in view["layers"].values() for one in sources.values()):
                measured["image"]["energy"], measured["things"]["towards"] = 0.5, [0.5] * len(view["things"])
    (out / "records.0.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records[:-2]))
    for name in ("run.json", "scores.json"):
        content = json.loads((out / name).read_text())
        (content if name == "run.json" else content["run"]).pop("file")
        for part in content.get("parts", ()):
            part["rows"].append(part["rows"][0] | {"figure": "energy"})
        (out / name).write_text(json.dumps(content))
    former = read_scores(out)
    assert [part.rows for part in former.parts] == [part.rows for part in read_scores(run.out).parts]
    again = score(run.detector, run.folder, out, Settings(draws=40))
    assert again.to_json() == run.scores.to_json()


def test_a_folder_into_which_another_process_measures_is_refused(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run.out, other)
    with claimed(other), pytest.raises(DeformscopeError, match="another process measures into it"):
        score(run.detector, run.folder, other, Settings(draws=40))
    (tmp_path / "file").touch()
    with pytest.raises(DeformscopeError, match="file: cannot be used"):
        score(run.detector, run.folder, tmp_path / "file", Settings(draws=40))


def test_a_folder_that_holds_another_run_is_refused(run):
    with pytest.raises(DeformscopeError, match="its crops differ"):
        score(run.detector, run.folder, run.out, Settings(draws=40, crops=False))
    other = copy.deepcopy(run.detector)
    with torch.no_grad():
        other.heads["stride8"].deform.weight[0] += 1
    with pytest.raises(DeformscopeError, match="its tensors differ"):
        score(other, run.folder, run.out, Settings(draws=40))
    with pytest.raises(DeformscopeError, match="no photos to measure"):
        score(run.detector, run.folder, run.out, Settings(max_photos=0))


def test_reports_name_the_file_of_the_weights_as_manifests_and_model_cards_do(small, folder, tmp_path):
    small.save(tmp_path / "small.safetensors", torch.float32)
    detector, settings = load(tmp_path / "small.safetensors"), Settings(draws=40, max_photos=2, crops=False)
    digest = hashlib.sha256((tmp_path / "small.safetensors").read_bytes()).hexdigest()
    out = tmp_path / "out"
    scores = score(detector, folder, out, settings)
    assert scores.run["weights_sha256"] == digest
    assert f"weights sha256 {digest[:12]}…" in write_report(scores, out).read_text()
    # The same weights of no file go on in the same folder.
    assert "weights of no file" in write_report(score(small, folder, out, settings), out).read_text()


def test_composed_and_single_layers_do_not_mix_in_one_folder(run, tmp_path):
    with pytest.raises(DeformscopeError, match="its composed differ"):
        score(run.detector, run.folder, run.out, Settings(draws=40, composed=True))
    score(run.detector, run.folder, tmp_path, Settings(draws=40, max_photos=1, crops=False, composed=True))
    with pytest.raises(DeformscopeError, match="its composed differ"):
        score(run.detector, run.folder, tmp_path, Settings(draws=40, max_photos=1, crops=False))


def test_the_report_holds_everything_in_one_file(run):
    path = write_report(run.scores, run.out)
    page = path.read_text()
    assert page.count("data:image/png;base64,") == 3 + 5  # a picture for each claim, and the plots
    assert page.count("data:image/jpeg;base64,") == 18  # two figures each of nine photos
    assert "http" not in page.replace("http-equiv", "")
    for words in ("Whole photos: 11 photos", "does not beat", "03.png", "Spearman", "size S", "default-src 'none'"):
        assert words in page
    # Metrics stand with their number of photos or objects, and their unit.
    assert "objects" in page
    assert "√area" in page
    opening = page[: page.index("<h2>Plots")]
    for verdict in run.scores.verdicts:
        assert f"<h2>{verdict.claim}</h2><p class='answer" in opening
    assert "<table" not in opening


def test_a_report_is_written_later_from_the_folder_alone_and_looks_the_same_under_any_settings(run, tmp_path):
    later = tmp_path / "moved"
    shutil.copytree(run.out, later)
    shutil.rmtree(later / "photos")  # as in folders of runs before
    scores = read_scores(later)
    assert scores.to_json() == run.scores.to_json()
    assert str(scores) == str(run.scores)
    rounded = Scores.from_json(run.scores.to_json(), run.scores.views)  # to six digits, as the file has them
    usual = write_report(rounded, later).read_text()
    assert "data:image/jpeg" not in usual
    with matplotlib.rc_context({"font.family": "serif", "font.size": 23, "axes.facecolor": "red", "savefig.dpi": 300}):
        assert write_report(scores, later).read_text() == usual
    (later / "scores.json").write_text('{"run": {"limit": 3}, "parts": [{"name": "whole"}], "problems": {}}')
    with pytest.raises(DeformscopeError, match=r"scores\.json: no scores of a finished run"):
        read_scores(later)
    with pytest.raises(DeformscopeError, match="no scores of a finished run"):
        read_scores(tmp_path)


def test_best_and_worst_photos_are_kept_however_the_run_was_shared_out_or_broken_off(run, tmp_path):
    """What is kept of two shares, and of a run that goes on, has the best and the worst of all."""
    random = np.random.default_rng(9)
    values = random.permutation(60) / 60
    analysis = Analysis(
        np.zeros((8, 12, 3), dtype=np.uint8),
        Fields({name: OffsetField.from_tensor(torch.zeros(18, 4, 6), name=name) for name in ("a", "b")}),
    )

    def record(index):
        found = {"a": values[index], "b": float("nan") if index % 7 else 1 - values[index]}
        layers = {
            name: {"field": Measured({"auroc": auroc}, {}, (), Matched((), (), ()))} for name, auroc in found.items()
        }
        return Record(index, index, "", views={"whole": View((), index % 2 == 0, 0.5, layers | {"*": {}})})

    first = Kept(tmp_path)
    for index in range(30):
        first.add(record(index), analysis)
    again, other = Kept(tmp_path), Kept(tmp_path)
    for index in range(20):
        again.add(record(index))
    for index in range(20, 30):
        again.add(record(index), analysis)
    for index in range(30, 60):
        other.add(record(index), analysis)
    for masked in (True, False):
        order = sorted((i for i in range(60) if (i % 2 == 0) is masked), key=lambda i: values[i])
        for index in (*order[:3], *order[-3:]):
            assert kept(tmp_path, index, "a") is not None
    assert all(kept(tmp_path, index, "b") is not None for index in range(12))
    assert kept(tmp_path, 30, "nothing") is None
    # Of each share, layer, kind of photo and end three, and the first twelve.
    assert len(list((tmp_path / "photos").iterdir())) <= 2 * 2 * 2 * 2 * 3 + 12
    assert kept(tmp_path, 0, "a").fields["a"].offset.dtype == torch.float32


def test_a_terminal_gets_a_verdict_for_each_claim_and_the_file_the_tables(run):
    scores = run.scores
    row = next(r for r in scores.part("whole").rows if r.metric.name == "auroc")
    text = as_markdown(scores.parts)
    assert f"{row.sources['field'].value:.3f} [" in text
    assert "AUROC of −divergence" in text
    assert "off-centre crops" in text.lower()
    shown = str(scores)
    assert len(shown.splitlines()) <= 30
    assert [line.partition(": ")[0] for line in shown.splitlines() if line[:1].isupper() and ": " in line][:3] == [
        "Features condense on objects",
        "Divergence segments objects",
        "Circles tell the size of objects",
    ]
    assert "small on boxes/annotations/instances_val.json: 14 of 14 photos" in shown
    assert "2 photos: photo not readable" in shown
    assert repr(scores) == "Scores(whole: 11 photos, crop: 11 photos)"
    page = scores._repr_html_()
    for verdict in scores.verdicts:
        assert f"{verdict.claim}<br>{verdict.answer}" in page
        assert page.count(f">{verdict.rows['whole'].sources['field'].text()}<") >= 1


@pytest.mark.parametrize(
    ("lows", "answer"),
    [
        ({"whole": 0.1, "crop": 0.2}, "holds"),
        ({"whole": -0.1, "crop": 0.2}, "holds in part"),
        ({"whole": 0.1, "crop": 0.0}, "holds in part"),
        ({"whole": -0.1, "crop": -0.2}, "not shown"),
        ({"whole": 0.1}, "holds"),
        ({}, "not measured"),
    ],
)
def test_a_claim_holds_where_the_offsets_beat_every_null(lows, answer):
    metric = next(metric for metric in METRICS if metric.name == "pointing")

    def row(layer, value, low):
        # The detected boxes are no null: nobody has to beat them.
        sources = {"field": Estimate(value, value, value), "noise": Estimate(0.2, 0.1, 0.3)}
        sources |= {"centre": Estimate(0.4, 0.3, 0.5), "filled": Estimate(1, 1, 1)}
        gains = {"noise": Estimate(0.6, 0.5, 0.7), "centre": Estimate(0.3, low, 0.5), "filled": Estimate(-1, -1, -1)}
        return Row(metric, layer, 20, sources, gains)

    parts = [Part(view, 20, 20, (row("weak", 0.3, 1), row("strong", 0.7, low))) for view, low in lows.items()]
    verdict = verdicts(parts)[0]
    assert verdict.answer == answer
    assert {view: one.layer for view, one in verdict.rows.items()} == dict.fromkeys(lows, "strong")
    for view, low in lows.items():
        expected = "beats every null, the nearest is" if low > 0 else "does not beat"
        assert verdict.reason(view) == f"{expected} the photo's centre (0.400)"
    unseen = verdicts([Part("whole", 20, 20, (row("seen", 0.9, 1),), (row("unseen", 0.7, 1),))])
    assert unseen[0].rows["whole"].layer == "unseen"
    assert "Few" not in as_text(unseen)
    assert ("Few whole photos" in as_text([verdict])) == ("whole" in lows)


def test_the_best_layer_is_chosen_on_one_half_and_measured_on_the_other(run):
    """The eleven photos three times over, told apart by their indices, so that each half has enough of them."""
    records = [replace(r, index=r.index + 14 * copy) for copy in (0, 1, 2) for r in lines(run.out).values()]
    scored = [r for r in records if r.status == "scored"]
    whole = summarise(lambda: records, {}, 40).part("whole")
    row = next(row for row in whole.best if row.metric.name == "auroc")
    halves = [
        {
            layer: np.mean([r.views["whole"].layers[layer]["field"].image["auroc"] for r in some])
            for layer in {row.layer for row in whole.rows}
        }
        for some in ([r for r in scored if r.index % 2 == side] for side in (0, 1))
    ]
    assert row.layer == max(halves[0], key=halves[0].get)
    assert row.sources["field"].value == pytest.approx(halves[1][row.layer])
    assert row.n == sum(r.index % 2 for r in scored)
    centre = np.mean([r.views["whole"].layers["*"]["centre"].image["auroc"] for r in scored if r.index % 2])
    assert row.gains["centre"].value == pytest.approx(row.sources["field"].value - centre)
    beaten = row.gains["centre"].low > 0
    assert ("centre" in row.verdict) != beaten
