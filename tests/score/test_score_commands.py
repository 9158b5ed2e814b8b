"""The commands that measure, as a person uses them."""

import sys


def test_score_names_a_folder_that_is_none(command, tmp_path):
    code, _, complaints = command("score", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert code == 2
    assert str(tmp_path / "nowhere") in complaints
    assert complaints.count("\n") == 1


def test_masks_are_asked_for_before_anything_is_measured(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    code, _, complaints = command("score", tmp_path, "--masks", "--out", tmp_path / "out")
    assert code == 2 and "GrabCut needs OpenCV" in complaints and complaints.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_score_with_masks_reads_the_annotations_once(command, folder, tmp_path, monkeypatch):
    from deformscope.score import scenes

    calls, real = [], scenes.read_coco
    monkeypatch.setattr(scenes, "read_coco", lambda *given, **more: calls.append(given) or real(*given, **more))
    options = ("--masks", "--max-photos", 3, "--no-crops", "--workers", 0, "--layer", "*stride32*")
    code, printed, complaints = command("score", folder, *options, "--out", tmp_path / "out")
    assert code == 0 and len(calls) == 1
    assert "packaged on boxes/annotations/instances_val.json: 3 of" in printed
    assert all("its masks are not measured" in line for line in complaints.splitlines())
