"""What every detector can do, so that nobody has to ask for its class."""

import ast
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import deformscope
from deformscope.detectors.checkpoints.native import load_trunk
from deformscope.detectors.dense.config import DenseConfig, DenseRCNNConfig, TrunkConfig
from deformscope.detectors.dense.dense import DenseDetector, SmallDetector
from deformscope.detectors.dense.dense_rcnn import DenseRCNN
from deformscope.detectors.detector import Batch
from deformscope.detectors.rcnn.rcnn import RCNN
from deformscope.errors import DeformscopeError

NAMES = ("cat", "dog", "cow")
CUT = TrunkConfig(deformable=(8, 10), cut=10, levels=(8, 16), pyramid=False)
PHOTO = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)


@pytest.fixture(params=["small", "dense", "shared", "trunk", "dense_rcnn", "masks", "rcnn", "mask_rcnn"])
def detector(request, thin, random_rcnn):
    torch.manual_seed(0)
    sides = {"shorter_side": 64, "longer_side": 128}
    second = {"channels": 16, "width": 32, "proposals": 8, "rois_per_image": 8}
    made = {
        "small": lambda: SmallDetector(DenseConfig(NAMES, channels=16, **sides)),
        "dense": lambda: DenseDetector(DenseConfig(NAMES, channels=16, modulated=True, **sides)),
        "shared": lambda: DenseDetector(DenseConfig(NAMES, channels=16, shared=True, deform_layers=2, **sides)),
        "trunk": lambda: DenseDetector(DenseConfig(NAMES, channels=16, deform_layers=0, trunk=CUT, **sides)),
        "dense_rcnn": lambda: DenseRCNN(DenseRCNNConfig(NAMES, **second, **sides)),
        "masks": lambda: DenseRCNN(DenseRCNNConfig(NAMES, masks=True, **second, **sides)),
        "rcnn": lambda: random_rcnn(thin("mdconv_c4,c5_group4", offset_mode="kernel").resized_to(64, 128)),
        "mask_rcnn": lambda: random_rcnn(thin(mask=True).resized_to(64, 128)),
    }[request.param]()
    return made.eval()


def batch_of(detector) -> Batch:
    images, placements = detector.prepare([PHOTO])
    masks = torch.zeros(2, *images.shape[2:], dtype=torch.bool)
    masks[0, 8:40, 8:60] = True
    target = {
        "boxes": torch.tensor([[8.0, 8, 60, 40], [70, 20, 100, 60]]),
        "labels": torch.tensor([1, 2]),
        "ignore": torch.tensor([False, True]),
        "masks": masks,
    }
    return Batch([target], images, tuple(placements))


def test_it_learns_from_a_batch(detector):
    torch.manual_seed(1)
    losses = detector.train().losses(batch_of(detector))
    assert all(name.startswith("loss_") for name in losses)
    assert any("mask" in name for name in losses) == detector.has_masks
    sum(losses.values()).backward()
    gradients = [p.grad for name, p in detector.named_parameters() if "conv_offset.weight" in name]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_an_ignored_object_is_no_example(detector):
    """Its label may be any."""
    batch = batch_of(detector)
    other = Batch([batch.targets[0] | {"labels": torch.tensor([1, 0])}], batch.images, batch.placements)
    found = []
    for one in (batch, other):
        torch.manual_seed(1)
        found.append({name: loss.item() for name, loss in detector.train().losses(one).items()})
    assert found[0] == found[1]


def test_where_it_has_a_trunk_it_learns_the_same_from_the_trunks_maps(detector):
    if detector.trunk is None:
        pytest.skip("learns from images alone")
    batch = batch_of(detector)
    frozen = detector.frozen_trunk or detector.trunk  # a small detector's learns, and has no frozen part
    maps = frozen(batch.images.to(memory_format=torch.channels_last))
    found = []
    for one in (batch, Batch(batch.targets, maps=maps)):
        torch.manual_seed(1)
        found.append({name: loss.item() for name, loss in detector.losses(one).items()})
    assert found[0] == found[1]


def test_photos_are_resized_to_the_side_that_is_asked_for(detector):
    assert detector.prepare([PHOTO])[1][0].scale[0] == pytest.approx(64 / 48)
    assert detector.prepare([PHOTO], 36)[1][0].scale[0] == pytest.approx(36 / 48)
    detector.resize_to(shorter_side=96)
    assert detector.prepare([PHOTO])[1][0].scale[1] == pytest.approx(128 / 80)  # 128 px is the longer side still
    detector.resize_to(longer_side=640)
    assert detector.prepare([PHOTO])[1][0].scale[0] == pytest.approx(96 / 48)
    for sides in ((0, None), (700, None), (None, 10), (64, 100_000)):
        with pytest.raises(DeformscopeError, match="1 ≤ shorter_side ≤ longer_side"):
            detector.resize_to(*sides)


def test_it_is_kept_in_one_file_and_comes_back_as_it_was(detector, tmp_path):
    path = tmp_path / "kept.safetensors"
    detector.save(path, torch.float32)
    again = deformscope.load(path)
    assert [file.name for file in tmp_path.iterdir()] == ["kept.safetensors"]
    assert type(again) is type(detector)
    assert (again.config, again.name, again.training) == (detector.config, "kept", False)
    assert {n: p.requires_grad for n, p in again.named_parameters()} == {
        n: p.requires_grad for n, p in detector.named_parameters()
    }
    for one, other in zip(again(PHOTO, min_score=0), detector(PHOTO, min_score=0), strict=True):
        assert len(one["boxes"])
        assert all(torch.equal(one[key], other[key]) for key in other)


def test_it_knows_the_file_that_its_weights_came_from_and_loading_draws_no_random_numbers(tmp_path):
    path, detector = tmp_path / "kept.safetensors", SmallDetector(DenseConfig(NAMES, channels=16))
    detector.save(path)
    assert detector.weights_sha256 is None
    before = torch.get_rng_state()
    again, other = deformscope.load(path), deformscope.load(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes() + b" ")
    assert again.weights_sha256 is not None  # of what it was loaded from
    assert other.weights_sha256 is None  # not of what is there now


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 17},
        {"channels": 0},
        {"channels": "many"},
        {"deform_layers": 10**9},
        {"offset_mode": "half"},
        {"class_names": []},
        {"longer_side": 10**9},
        {"width": -1},
        {"proposals": 0},
        {"unknown": 1},
    ],
)
def test_a_configuration_that_makes_no_network_is_refused_in_one_line(tmp_path, change):
    DenseRCNN(DenseRCNNConfig(NAMES, channels=16, width=32)).save(tmp_path / "good.safetensors")
    with safe_open(tmp_path / "good.safetensors", "pt") as file:
        metadata = file.metadata()
    metadata["config"] = json.dumps(json.loads(metadata["config"]) | change)
    save_file(load_file(tmp_path / "good.safetensors"), tmp_path / "bad.safetensors", metadata)
    with pytest.raises(DeformscopeError, match=r"bad\.safetensors: its configuration cannot be used") as error:
        deformscope.load(tmp_path / "bad.safetensors")
    assert "\n" not in str(error.value)
    assert next(iter(change)) in str(error.value)


def test_published_weights_go_into_the_trunk_they_are_of(thin, tmp_path):
    import torchvision

    trunk = deformscope.load("packaged").trunk.state_dict()
    dense = DenseDetector(DenseConfig(NAMES, channels=16))
    load_trunk(dense, "packaged")
    assert all(torch.equal(value, trunk[key]) for key, value in dense.trunk.state_dict().items())
    torch.save({"state_dict": {f"other.{i}": value for i, value in enumerate(trunk.values())}}, tmp_path / "a.pth")
    other = DenseDetector(DenseConfig(NAMES, channels=16))
    load_trunk(other, tmp_path / "a.pth")
    assert all(torch.equal(value, trunk[key]) for key, value in other.trunk.state_dict().items())

    resnet = torchvision.models.resnet50(weights=None).state_dict()
    torch.save(resnet, tmp_path / "resnet.pth")
    with pytest.raises(DeformscopeError, match=r"weights='.*resnet\.pth'.*MobileNetV2"):
        load_trunk(dense, tmp_path / "resnet.pth")
    with pytest.raises(DeformscopeError, match=r"resnet\.pth'.*size mismatch.*torchvision's ResNet"):
        load_trunk(RCNN(thin()), tmp_path / "resnet.pth")
    with pytest.raises(DeformscopeError, match=r"weights='packaged'.*no 'conv1\.weight'"):
        load_trunk(RCNN(thin()), "packaged")
    for weights in ("packaged", "torchvision"):
        with pytest.raises(DeformscopeError, match=f"weights='{weights}'.*a small detector"):
            load_trunk(SmallDetector(DenseConfig(NAMES, channels=16)), weights)
    with pytest.raises(DeformscopeError, match=r"none\.pth: no such file"):
        load_trunk(dense, tmp_path / "none.pth")


def test_nobody_outside_asks_for_a_detectors_class():
    """isinstance, issubclass and type(...) is on a class of a detector are for detectors/ alone."""
    classes = {"DenseDetector", "DenseRCNN", "SmallDetector", "RCNN"}
    package = Path(deformscope.__file__).parent
    asked = []
    for path in package.rglob("*.py"):
        if (package / "detectors") in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Name, ast.Attribute)):
                name = node.id if isinstance(node, ast.Name) else node.attr
                if name in classes:
                    asked.append(f"{path.relative_to(package)}:{node.lineno} {name}")
    assert asked == []
