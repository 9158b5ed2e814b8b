"""The detector that comes with the package works out of the box, on a photo that it never saw."""

import hashlib
from importlib.resources import files

import pytest
import torch
from safetensors.torch import save_file

import deformscope as ds
from deformscope import DeformscopeError
from deformscope.detectors.checkpoints.native import load
from deformscope.detectors.dense.config import DenseConfig
from deformscope.detectors.dense.dense import DenseDetector
from deformscope.detectors.dense.predictions import BACKGROUND, IGNORED, assign


@pytest.fixture(scope="module")
def packaged():
    return ds.load("packaged")


def test_it_finds_the_cat(packaged, cat):
    found = packaged(cat)[0]
    assert packaged.class_names[found["labels"][0]] == "cat"
    assert found["scores"][0] > 0.5
    x0, y0, x1, y1 = found["boxes"][0].tolist()
    assert 0 <= x0 < 150 < 300 < x1 <= 451  # the face fills most of the photo, 451 × 300 px
    assert 0 <= y0 < 100 < 200 < y1 <= 300


def test_its_offsets_are_alive_on_every_level(packaged, cat):
    with ds.capture(packaged) as fields:
        packaged(cat)
    layers = [(stride, layer) for stride in (8, 16, 32) for layer in ("before.0", "deform")]
    assert list(fields) == [f"heads.stride{stride}.{layer}" for stride, layer in layers]
    assert [field.reduction for field in fields.values()] == [(stride, stride) for stride, _ in layers]
    for field in fields.values():
        assert field.offset.norm(dim=-1).median() > 0.1
        assert field.placements[0].size == (300, 451)


def test_its_weights_are_small_and_come_with_a_model_card():
    folder = files("deformscope") / "weights"
    assert len((folder / "packaged.safetensors").read_bytes()) < 30e6
    card = (folder / "MODEL_CARD.md").read_text()
    for word in ("Pascal VOC", "MIT", "AP", "licence", "not"):
        assert word in card


def test_several_photos_at_once_give_what_each_gives_alone(packaged, cat):
    import numpy as np
    from PIL import Image

    # Beside a wider photo a narrow one is padded, which its detections must not feel.
    narrow = np.ascontiguousarray(np.asarray(Image.open(cat).convert("RGB"))[:, 60:300])
    photos = [cat, narrow, cat]
    with ds.capture(packaged) as fields:
        together = packaged(photos)
    for photo, found in zip(photos, together, strict=True):
        for key, value in packaged(photo)[0].items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-3)
    # One call a size: the two cats, then the narrow photo.
    first, second = fields["heads.stride16.deform"], fields["heads.stride16.deform#2"]
    assert [placement.size for placement in first.placements] == [(300, 451), (300, 451)]
    assert [placement.size for placement in second.placements] == [(300, 240)]


def test_its_card_names_the_file_that_is_loaded(packaged):
    folder = files("deformscope") / "weights"
    digest = hashlib.sha256((folder / "packaged.safetensors").read_bytes()).hexdigest()
    assert packaged.weights_sha256 == digest
    assert f"sha256 `{digest}`" in (folder / "MODEL_CARD.md").read_text()


def test_a_checkpoint_is_kept_whole(tmp_path):
    torch.manual_seed(0)
    config = DenseConfig(("a", "b"), channels=16, modulated=True, offset_mode="kernel")
    detector = DenseDetector(config)
    detector.save(tmp_path / "own.safetensors", torch.float32)
    again = load(tmp_path / "own.safetensors")
    assert again.config == config
    assert again.name == "own"
    assert not again.training
    for key, value in detector.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(again.state_dict()[key], value)
    assert [path.name for path in tmp_path.iterdir()] == ["own.safetensors"]


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_a_file_of_another_kind_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(DeformscopeError, match="no readable safetensors") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path):
    header = {"architecture": "dense", "config": '{"class_names": ["a"]}'}
    save_file({"heads.stride8.cls.weight": torch.zeros(1)}, tmp_path / "odd.safetensors", header)
    with pytest.raises(DeformscopeError, match=r"does not fit a dense detector .* missing: fpn"):
        load(tmp_path / "odd.safetensors")


def test_a_cell_belongs_to_the_smallest_box_around_it_of_its_levels_size():
    centres = torch.tensor([[50.0, 50], [10, 10], [50, 50], [200, 200]])
    level = torch.tensor([0, 0, 2, 0])
    target = {
        "boxes": torch.tensor([[0.0, 0, 60, 60], [40, 40, 60, 60], [0, 0, 300, 300], [190, 190, 210, 210]]),
        "labels": torch.tensor([3, 4, 5, 6]),
        "ignore": torch.tensor([False, False, False, True]),
    }
    labels, boxes, index = assign(centres, level, target)
    assert labels.tolist() == [4, 3, 5, IGNORED]
    assert index.tolist() == [1, 0, 2, 3]
    assert boxes[0].tolist() == [40, 40, 60, 60]
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    assert assign(centres, level, empty)[0].tolist() == [BACKGROUND] * 4


def test_losses_fall_when_predictions_come_closer_and_reach_the_offsets():
    torch.manual_seed(0)
    detector = DenseDetector(DenseConfig(("a", "b"), channels=16)).train()
    maps = {
        f"stride{stride}": torch.randn(2, channels, 64 // stride, 96 // stride)
        for stride, channels in zip((8, 16, 32), detector.trunk.channels, strict=True)
    }
    targets = [
        {"boxes": torch.tensor([[10.0, 12, 50, 44]]), "labels": torch.tensor([1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
    ]
    # At 1e-2 the loss jumps, and where it stands after 40 steps depends on the number of threads.
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], 3e-3)
    history = []
    for _ in range(40):
        losses = detector.prediction_losses(detector.predict(maps), targets)
        assert set(losses) == {"loss_cls", "loss_box", "loss_iou"}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append(losses["loss_box"].item())
    assert history[-1] < 0.5 * history[0]
    assert detector.heads["stride8"].deform.conv_offset.weight.abs().max() > 0
    assert not any(p.requires_grad for p in detector.trunk.parameters())
    assert not detector.trunk.training
