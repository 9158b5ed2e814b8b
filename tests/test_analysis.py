"""Analyses come back from their files as they were, and from nothing else."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import safe_open, save_file

from deformscope import Analysis, DeformscopeError, Fields
from deformscope.fields.field import Placement


@pytest.fixture
def analysis(make_field):
    first = replace(make_field(g=1), name="one", below="", placements=(Placement((40, 60), (0.5, 0.5), (1.0, 2.0)),))
    second = replace(make_field(seed=1), name="two", below="one")
    second = replace(second, modulation=torch.rand(second.offset.shape[:-1]))
    detection = {
        "boxes": torch.tensor([[1.0, 2.0, 30.0, 20.0]]),
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.5]),
        "masks": torch.ones(1, 40, 60, dtype=torch.bool),
    }
    photo = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    return Analysis(photo, Fields({"one": first, "two": second}), detection, ("cat", "dog"), "small")


@pytest.fixture
def spoilt(analysis, tmp_path):
    """The file of an analysis, its tensors and its header changed."""

    def make(change):
        path = tmp_path / "a.safetensors"
        analysis.save(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = json.loads(metadata["header"])
        text = change(header, tensors)
        save_file(tensors, path, metadata | {"header": text if isinstance(text, str) else json.dumps(header)})
        return path

    return make


def test_what_is_saved_comes_back(analysis, tmp_path):
    analysis.save(tmp_path / "a.safetensors")
    again = Analysis.load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(again.photo, analysis.photo)
    assert (again.class_names, again.detector) == (("cat", "dog"), "small")
    for name, field in analysis.fields.items():
        mine = again.fields[name]
        assert torch.equal(mine.offset, field.offset)
        assert (mine.modulation is None) == (field.modulation is None)
        assert field.modulation is None or torch.equal(mine.modulation, field.modulation)
        plain = {"offset": field.offset, "modulation": field.modulation}
        assert replace(mine, **plain) == field
    for key, value in analysis.detection.items():
        assert torch.equal(again.detection[key], value)


def test_files_from_before_fields_knew_what_lies_below_are_read(spoilt):
    path = spoilt(lambda header, tensors: [field.pop("below") for field in header["fields"]])
    assert [field.below for field in Analysis.load(path).fields.values()] == [None, None]


def test_kernels_without_a_centre_and_at_real_distances_come_back(analysis, make_field, tmp_path):
    fields = {
        "dcnv3": replace(make_field(g=1, kernel=(3, 3)), name="dcnv3", absent=(4,)),
        "dat": replace(make_field(g=1, kernel=(1, 1)), name="dat", stride=(2.1, 2.25), padding=(-1.05, -1.125)),
    }
    replace(analysis, fields=Fields(fields)).save(tmp_path / "a.safetensors")
    again = Analysis.load(tmp_path / "a.safetensors").fields
    for name, field in fields.items():
        assert replace(again[name], offset=field.offset, modulation=None) == field


def drop(key):
    return lambda header, tensors: header.pop(key) and None


def of_field(**values):
    return lambda header, tensors: header["fields"][0].update(values)


def tensor(key, value):
    return lambda header, tensors: tensors.update({key: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda header, tensors: "{", "Expecting property name"),
        (lambda header, tensors: "[" * 10_000, "recursion|nested"),
        (lambda header, tensors: "3", "expected keys and values"),
        (drop("fields"), "header.fields: missing"),
        (drop("detector"), "header.detector: missing"),
        (lambda header, tensors: header["fields"][0].pop("stride"), r"header\.fields\[0\]\.stride: missing"),
        (of_field(stride=[2]), r"header\.fields\[0\]\.stride: \[2\]"),
        (of_field(stride=["2", 1]), r"stride\[0\]: '2'; expected a whole number"),
        (of_field(absent=[6]), r"absent: \(6,\); expected points below 6"),
        (of_field(layout=[[0, 1], [0, 0]]), r"layout: .*; expected strides above 0"),
        (of_field(stride=[0, 1]), r"stride: \(0, 1\); expected at least 1"),
        (of_field(kernel_size=[2**40, 2**40]), "field/0/offset"),
        (of_field(cells="many"), "cells"),
        (of_field(network_size=[0, 4]), "above 0"),
        (of_field(cells={"reduction": [0, 1], "origin": [0, 0]}), "expected sizes and scales above 0"),
        (of_field(cells={"reduction": [float("nan"), 1], "origin": [0, 0]}), "reduction"),
        (of_field(placements=[{"size": [40, 60]}] * 2), "placements"),
        (of_field(placements=[{"size": [40, 60], "scale": [1, 0]}]), "above 0"),
        (lambda header, tensors: header.update(class_names=[1, 2]), r"class_names\[0\]: 1; expected text"),
        (lambda header, tensors: header.update(class_names=["cat"]), "labels up to 1; expected those of 1 class names"),
        (lambda header, tensors: tensors.pop("photo"), "no tensor 'photo'"),
        (lambda header, tensors: tensors.pop("field/1/offset"), "no tensor 'field/1/offset'"),
        (tensor("photo", torch.zeros(40, 60, 3)), r"'photo': \[40, 60, 3\] of type torch.float32; expected \[· · 3\]"),
        (tensor("photo", torch.zeros(40, 60, dtype=torch.uint8)), "'photo'"),
        (tensor("field/0/offset", torch.zeros(())), "'field/0/offset'"),
        (tensor("field/0/offset", torch.zeros(1, 1, 6, 7, 10, 2, dtype=torch.int32)), "expected floats"),
        (tensor("field/1/modulation", torch.zeros(1, 2, 6, 7, 9)), "'field/1/modulation'"),
        (tensor("detection/boxes", torch.zeros(1, 5)), "'detection/boxes'"),
        (tensor("detection/scores", torch.zeros(2)), "'detection/scores'"),
        (tensor("detection/masks", torch.zeros(1, 40)), "'detection/masks'"),
    ],
)
def test_what_is_no_analysis_is_one_line(spoilt, change, words):
    path = spoilt(change)
    with pytest.raises(DeformscopeError, match=words) as raised:
        Analysis.load(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: no readable analysis (") and "\n" not in message and len(message) < 600
