"""A run over a folder: the same records however it is shared out or broken off; no bad photo ends it."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deformscope import DeformscopeError
from deformscope.score import Settings, score
from deformscope.score.report.html import write_report
from deformscope.score.summary.columns import read_records
from deformscope.score.summary.summarise import summarise
from deformscope.score.summary.tables import as_markdown, as_tables


def lines(folder):
    return {record["index"]: record for record in read_records(folder)}


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


def test_workers_give_the_same_records(run, tmp_path):
    score(run.detector, run.folder, tmp_path / "workers", Settings(draws=40, workers=2))
    assert lines(tmp_path / "workers") == lines(run.out)


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
    scored = [r for r in lines(tmp_path / "one").values() if r["status"] == "scored"]
    assert len(scores.problems["offsets not finite"]) == len(scored) > 0
    assert scores.problems["offsets not finite"][0].endswith(": heads.stride16.deform")
    assert {row.layer for row in scores.part("whole").rows} == {"heads.stride8.deform", "heads.stride32.deform"}
    with torch.no_grad():
        for head in small.heads.values():
            head.deform.conv_offset.bias[0] = torch.inf
    scores = score(small, folder, tmp_path / "all", Settings(draws=40, max_photos=4))
    assert scores.parts == ()
    assert len(scores.problems["offsets not finite"]) == len(scored)
    assert [table.title for table in as_tables(scores)] == ["not scored"]


def test_more_photos_later_keep_those_that_are_measured(small, folder, tmp_path):
    out = tmp_path / "grown"
    score(small, folder, out, Settings(draws=40, max_photos=3))
    few = lines(out)
    score(small, folder, out, Settings(draws=40, max_photos=6))
    assert {index: record for index, record in lines(out).items() if index < 3} == few
    assert sorted(lines(out)) == list(range(6))


def test_a_folder_that_holds_another_run_is_refused(run):
    with pytest.raises(DeformscopeError, match="its crops differ"):
        score(run.detector, run.folder, run.out, Settings(draws=40, crops=False))
    other = copy.deepcopy(run.detector)
    with torch.no_grad():
        other.heads["stride8"].deform.weight[0] += 1
    with pytest.raises(DeformscopeError, match="its weights differ"):
        score(other, run.folder, run.out, Settings(draws=40))
    with pytest.raises(DeformscopeError, match="no photos to measure"):
        score(run.detector, run.folder, run.out, Settings(max_photos=0))


def test_composed_and_single_layers_do_not_mix_in_one_folder(run, tmp_path):
    with pytest.raises(DeformscopeError, match="its composed differ"):
        score(run.detector, run.folder, run.out, Settings(draws=40, composed=True))
    score(run.detector, run.folder, tmp_path, Settings(draws=40, max_photos=1, crops=False, composed=True))
    with pytest.raises(DeformscopeError, match="its composed differ"):
        score(run.detector, run.folder, tmp_path, Settings(draws=40, max_photos=1, crops=False))


def test_the_report_holds_everything_in_one_file(run):
    path = write_report(run.scores, run.detector, run.folder, run.out, Settings())
    page = path.read_text()
    assert page.count("data:image/png;base64,") == 5  # the plots
    assert page.count("data:image/jpeg;base64,") == 18  # two figures each of nine photos
    assert "http" not in page.replace("http-equiv", "")
    for words in ("Whole photos: 11 photos", "beats every null", "03.png", "Spearman", "size S", "default-src 'none'"):
        assert words in page
    # Figures stand with their number of photos or objects, and their unit.
    assert "objects" in page
    assert "√area" in page


def test_tables_show_the_same_numbers_in_the_terminal_and_as_markdown(run):
    from rich.console import Console

    scores = run.scores
    row = next(r for r in scores.part("whole").rows if r.metric.name == "auroc")
    console = Console(width=250, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    for table in as_tables(scores):
        console.print(table)
    for text in (console.export_text(), as_markdown(scores)):
        assert f"{row.sources['field'].value:.3f} [" in text
        assert "AUROC of −divergence" in text
        assert "off-centre crops" in text.lower()


def test_records_hold_what_was_measured_of_the_photo_alone(run):
    """Every number of a record is finite or NaN for a reason that the record shows."""
    for record in lines(run.out).values():
        for view in record.get("views", {}).values():
            for name, sources in view["layers"].items():
                for measured in sources.values():
                    assert len(measured["things"]["cosine"]) == len(view["things"])
                    assert np.isfinite(measured["image"]["auroc"])
                    assert len(measured["segments"]["scores"]) <= 100, name


def test_the_best_layer_is_chosen_on_one_half_and_measured_on_the_other(run):
    """The eleven photos three times over, told apart by their indices, so that each half has enough of them."""
    records = [r | {"index": r["index"] + 14 * copy} for copy in (0, 1, 2) for r in lines(run.out).values()]
    scored = [r for r in records if r["status"] == "scored"]
    whole = summarise(lambda: records, {}, 40).part("whole")
    row = next(row for row in whole.best if row.metric.name == "auroc")
    halves = [
        {
            layer: np.mean([r["views"]["whole"]["layers"][layer]["field"]["image"]["auroc"] for r in some])
            for layer in {row.layer for row in whole.rows}
        }
        for some in ([r for r in scored if r["index"] % 2 == side] for side in (0, 1))
    ]
    assert row.layer == max(halves[0], key=halves[0].get)
    assert row.sources["field"].value == pytest.approx(halves[1][row.layer])
    assert row.n == sum(r["index"] % 2 for r in scored)
    centre = np.mean([r["views"]["whole"]["layers"]["*"]["centre"]["image"]["auroc"] for r in scored if r["index"] % 2])
    assert row.gains["centre"].value == pytest.approx(row.sources["field"].value - centre)
    beaten = row.gains["centre"].low > 0
    assert ("centre" in row.verdict) != beaten
