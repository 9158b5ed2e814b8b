"""The packaged detector with a deformable trunk, on a photo that it never saw."""

import hashlib
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

import deformscope as ds
from deformscope.fields.stack import composed, upstream
from deformscope.training.reading import read

LAYERS = [f"trunk.features.{block}.conv.1.0" for block in (11, 12, 13)]


@pytest.fixture(scope="module")
def trunk():
    return ds.load("trunk")


def test_its_offsets_are_alive_in_every_layer_of_the_trunk_and_nowhere_else(trunk, cat):
    with ds.capture(trunk) as fields:
        found = trunk(cat)[0]
    assert list(fields) == LAYERS
    for field in fields.values():
        assert field.output_cells.reduction == (16, 16)
        assert field.offset.square().sum(-1).mean() > 0.1
    assert trunk.class_names[found["labels"][0]] == "cat"
    assert found["scores"][0] > 0.5


def test_cells_beside_a_cat_look_towards_it(trunk, cat):
    """The cat in one half of a grey canvas."""
    face = np.asarray(Image.open(cat).convert("RGB").resize((200, 133)))
    photo = np.full((300, 450, 3), 124, dtype=np.uint8)
    photo[80:213, 20:220] = face
    with ds.capture(trunk) as fields:
        trunk(photo)
    field = composed(upstream(fields, LAYERS[-1], 3))
    d_f = ds.split(field.offset)[0][0, 0, 0]
    h, w, _ = d_f.shape
    middle, right = d_f[h // 4 : 3 * h // 4], w * 220 // 450
    assert middle[:, right : right + 4, 1].mean() < -0.5  # to the left
    assert middle[:, :3, 1].mean() > 0.5


def test_its_card_names_the_file_and_its_recipe_the_network(trunk):
    folder = files("deformscope") / "weights"
    digest = hashlib.sha256((folder / "trunk.safetensors").read_bytes()).hexdigest()
    card = (folder / "MODEL_CARD_TRUNK.md").read_text()
    assert trunk.weights_sha256 == digest
    assert f"sha256 `{digest}`" in card
    for word in ("Pascal VOC", "MIT", "AP", "icence", "**not**", "seed 0"):
        assert word in card
    recipe = read("trunk", ["data.folder=anywhere"])
    assert recipe.network.trunk == trunk.config.trunk
    assert recipe.network.deform_layers == trunk.config.deform_layers == 0
    assert f"{recipe.run.steps} steps" in card


def test_it_is_not_taken_for_a_file_and_has_one_set_of_weights(trunk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trunk").write_text("no detector")
    assert ds.load("trunk").config == trunk.config
    with pytest.raises(ds.DeformscopeError, match="the trunk detector has one set of weights"):
        ds.load("trunk", weights="ema")
    with pytest.raises(ds.DeformscopeError, match="nearest names: trunk"):
        ds.load("trunks")
