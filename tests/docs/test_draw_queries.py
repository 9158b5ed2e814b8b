"""The picture of object queries is drawn of a trained detector where there is one, and left out with a reason."""

import importlib.util
from pathlib import Path

import pytest

import deformscope

TOOL = Path(__file__).parents[2] / "tools" / "draw_queries.py"


def tool(monkeypatch, shared):
    monkeypatch.setenv("DEFORMSCOPE_SHARED", str(shared))
    spec = importlib.util.spec_from_file_location("draw_queries", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    drawing = tool(monkeypatch, tmp_path)
    assert drawing.missing() == f"no {tmp_path}/attention with a trained detector (DEFORMSCOPE_SHARED names its folder)"
    (tmp_path / "attention").mkdir()
    (tmp_path / "attention" / "deimv2.py").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert drawing.missing() == "transformers is not installed"


def test_the_detector_of_the_picture_finds_the_cup(monkeypatch, shared):
    pytest.importorskip("transformers")
    drawing = tool(monkeypatch, shared)
    assert drawing.missing() == ""
    analysis = deformscope.analyse(drawing.detector(), drawing.CUP)
    best = [analysis.class_names[label] for label in analysis.detection["labels"][: drawing.ROWS].tolist()]
    assert best == ["dining table", "cup", "fork"]
    assert len(analysis.decoder) == 3 and analysis.queries()[0] == 0
