"""The packaged detector whose boxes are decoded from its offsets, on a photo that it never saw."""

import hashlib
from importlib.resources import files

import pytest
import torch
from safetensors import safe_open

import deformscope as ds
from deformscope.training.reading import read

WEIGHTS = files("deformscope") / "weights"


@pytest.fixture(scope="module")
def guided():
    return ds.load("guided")


def test_it_finds_the_cat_and_a_mask_of_it(guided, cat):
    found = guided(cat)[0]
    assert guided.class_names[found["labels"][0]] == "cat"
    assert found["scores"][0] > 0.5
    x0, y0, x1, y1 = found["boxes"][0].tolist()
    assert 0 <= x0 < 150 < 300 < x1 <= 451 and 0 <= y0 < 100 < 200 < y1 <= 300
    mask = found["masks"][0].squeeze()
    assert mask.shape == (300, 451)
    assert mask[60:240, 100:350].float().mean() > 0.8  # the face
    assert mask.float().mean() < 0.95


def test_its_boxes_come_from_its_offsets(guided, cat):
    assert guided.config.decode == "D2"
    whole = guided(cat)[0]["boxes"][0]
    without = ds.load("guided", offset_mode="none")(cat, min_score=0.0)[0]["boxes"][0]
    sizes = [(box[2:] - box[:2]).prod().sqrt() for box in (whole, without)]
    assert sizes[1] < 0.8 * sizes[0]  # of kernels that do not move


def test_its_file_has_what_packaged_lacks_and_no_more(guided):
    other = ds.load("packaged")
    lent = other.state_dict()
    assert guided.class_names == other.class_names
    for key, value in guided.trunk.state_dict().items():
        assert torch.equal(value, lent[f"trunk.{key}"]), key
    with safe_open(str(WEIGHTS / "guided.safetensors"), framework="pt") as file:
        kept = set(file.keys())
    assert not any(key.startswith("trunk.") for key in kept)
    assert kept <= guided.state_dict().keys()
    assert {key for key in guided.state_dict() if key.startswith(("heads.", "fpn.", "masks."))} <= kept


def test_its_card_names_the_file_and_its_recipes_the_network(guided):
    digest = hashlib.sha256((WEIGHTS / "guided.safetensors").read_bytes()).hexdigest()
    card = (WEIGHTS / "MODEL_CARD_GUIDED.md").read_text(encoding="utf-8")
    assert guided.weights_sha256 == digest
    assert f"sha256 `{digest}`" in card
    for word in ("Pascal VOC", "COCO", "MIT", "AP", "icence", "**not**", "seed 0"):
        assert word in card
    boxes, masks = read("guided", ["data.folder=anywhere"]), read("guided_masks", ["data.folder=anywhere"])
    for recipe in (boxes, masks):
        assert recipe.network.decode == guided.config.decode
        assert recipe.network.deform_layers == guided.config.deform_layers == 2
        assert f"{recipe.run.steps:,} steps" in card
    assert masks.network.config(guided.class_names) == guided.config


def test_saved_it_is_a_whole_file(guided, cat, tmp_path):
    guided.save(tmp_path / "whole.safetensors")
    again = ds.load(tmp_path / "whole.safetensors")
    assert torch.equal(again(cat)[0]["boxes"], guided(cat)[0]["boxes"])


def test_every_tensor_of_its_file_is_of_half_precision():
    with safe_open(str(WEIGHTS / "guided.safetensors"), framework="pt") as file:
        kinds = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    assert kinds <= {torch.float16, torch.int64}
