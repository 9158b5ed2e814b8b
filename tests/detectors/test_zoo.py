"""Names, files, the table of published detectors, and what loading one at full width costs."""

import hashlib
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deformscope.detectors import zoo
from deformscope.detectors.checkpoints import detectron2, mmdet, unpickle as reading
from deformscope.detectors.rcnn.config import DETECTRON2, MMDETECTION, Deformable, RCNNConfig, coco_class_names
from deformscope.detectors.rcnn.rcnn import RCNN
from deformscope.errors import DeformscopeError


def config_of(published: zoo.Published) -> RCNNConfig:
    deformable = re.search(r"m?dconv_c3-c5(_group\d)?", published.name)[0]
    return RCNNConfig(coco_class_names(), mask="mask" in published.name, deformable=Deformable.parse(deformable))


@pytest.mark.parametrize("published", zoo.PUBLISHED, ids=lambda p: p.name)
def test_the_table_agrees_with_itself(published):
    """Name, address, checksum and size of each row tell the same architecture."""
    with torch.device("meta"):
        detector = RCNN(config_of(published))
    weights = sum(value.numel() * value.element_size() for value in detector.state_dict().values())
    assert published.megabytes == pytest.approx(weights / 1e6, abs=0.6)
    folder, _, model = published.name.partition("/")
    assert f"/{model}" in published.url and published.path.parts[-2:] == (folder, published.url.rsplit("/", 1)[1])
    assert (published.mask_ap is not None) == detector.config.mask
    if published.source == "MMDetection":
        assert re.fullmatch(r"[0-9a-f]{8}", published.sha256) and published.sha256 in published.url


def test_the_listing_says_what_is_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFORMSCOPE_CACHE", str(tmp_path))
    assert {row[-1] for row in zoo.rows()} == {"no"}
    path = zoo.PUBLISHED[1].path
    path.parent.mkdir()
    path.write_bytes(b"0" * 3_000_000)
    assert len(zoo.COLUMNS) == len(zoo.rows()[1])
    assert zoo.rows()[1] == ("mmdet/mask_rcnn_r50_fpn_dconv_c3-c5", "MMDetection", "41.8", "37.4", "3 MB", "yes")
    assert zoo.rows()[0][3:] == ("", "≈170 MB", "no")


def test_an_unknown_name_tells_the_nearest_ones():
    with pytest.raises(DeformscopeError) as error:
        zoo.load("mmdet/faster_rcnn_r50_dconv_c3-c5")
    assert "nearest names: mmdet/faster_rcnn_r50_fpn_dconv_c3-c5" in str(error.value)
    with pytest.raises(DeformscopeError, match="nearest names: packaged"):
        zoo.load("packagd")
    with pytest.raises(DeformscopeError, match="lists the names"):
        zoo.load("§§§§")
    with pytest.raises(DeformscopeError, match="no such file"):
        zoo.load(Path("nowhere/model.pth"))


def test_a_published_name_is_fetched_checked_and_loaded(oracles, tmp_path, monkeypatch):
    """The address is this machine's file system, the file the thin oracle."""
    oracle = oracles["faster"]
    digest = hashlib.sha256(oracle.path.read_bytes()).hexdigest()
    known = replace(zoo.PUBLISHED[0], url=oracle.path.as_uri(), sha256=digest[:8])
    monkeypatch.setattr(zoo, "PUBLISHED", (known,))
    monkeypatch.setenv("DEFORMSCOPE_CACHE", str(tmp_path))
    detector = zoo.load(known.name)
    assert (detector.name, detector.class_names[0], detector.training) == (known.name, "person", False)
    assert (tmp_path / "mmdet" / oracle.path.name).read_bytes() == oracle.path.read_bytes()
    monkeypatch.setattr(zoo, "PUBLISHED", (replace(known, url="http://127.0.0.1:9/" + oracle.path.name),))
    assert zoo.load(known.name).name == known.name  # from the cache


def test_settings_of_load_reach_the_detector(oracles):
    detector = oracles["mask"].load(offset_mode="kernel")
    how = detector.config.dialect.preparation
    assert (how.shorter_side, how.longer_side) == (200, 320)
    assert {m.offset_mode for m in detector.modules() if hasattr(m, "offset_mode")} == {"kernel"}
    with pytest.raises(DeformscopeError, match="1 ≤ shorter_side ≤ longer_side"):
        zoo.load(oracles["mask"].path, shorter_side=500, longer_side=300)


def test_captured_cells_lie_on_the_photo(oracles):
    """The Detector contract: offsets are captured by readable names and placed in the photo's own px."""
    import deformscope

    oracle = oracles["faster"]
    detector = oracle.load()
    with deformscope.capture(detector) as fields:
        detector(oracle.photos)
    assert next(iter(fields)) == "backbone.layer2.0.conv2" and len(fields) == 13
    field = fields["backbone.layer3.0.conv2"]
    assert field.reduction == (16, 16) and field.stride == (2, 2)
    channels = field.offset.movedim(-1, 3).flatten(1, 3)  # [n g k h w 2] -> [n 2·g·k h w], (dy, dx) interleaved
    assert oracle.off("conv_offset_out/layer3.0.conv2", channels) < 1e-3
    for image, photo in enumerate(oracle.photos):
        assert field.placement(image).size == photo.shape[:2]
        per_cell = field.pixels_per_cell(image)  # px of the photo per input cell (stride 8 in the network's input)
        scale = oracle.placements[image].scale
        assert per_cell == pytest.approx((8 / scale[0], 8 / scale[1]))
        first = field.to_pixels(field.centres()[0, 0], image)
        assert first.tolist() == pytest.approx([0.5 / scale[0], 0.5 / scale[1]])


COST = """
import resource, sys, threading, time
sys.path.insert(0, {source!r})
import torch, torchvision
from torchvision.ops import roi_align
from torchvision.models.detection import faster_rcnn, mask_rcnn
from deformscope.detectors import zoo
from deformscope.detectors.checkpoints import detectron2, mmdet, native, unpickle

def memory(name):
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

before = memory('VmRSS')
start = time.process_time()
detector = zoo.load({path!r})
seconds = time.process_time() - start
extra = memory('VmHWM') - before
start = time.process_time()
mask_rcnn.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81)
print(seconds / (time.process_time() - start), extra)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory in /proc")
@pytest.mark.parametrize("kind", ["legacy .pth", "zip .pth", ".pkl", ".safetensors"])
def test_a_full_width_checkpoint_loads_within_its_time_and_memory(tmp_path, kind):
    path = tmp_path / "model"
    with torch.device("meta"):
        detector = RCNN(
            RCNNConfig(coco_class_names(), mask=True, dialect=DETECTRON2 if kind == ".pkl" else MMDETECTION)
        )
    state = {key: torch.full(value.shape, 0.5, dtype=value.dtype) for key, value in detector.state_dict().items()}
    if kind == ".pkl":
        model = {detectron2.to_theirs(key): value.numpy() for key, value in state.items() if value.ndim}
        with path.open("wb") as file:
            pickle.dump({"model": model, "__author__": "x"}, file, protocol=4)
    elif kind == ".safetensors":
        with torch.device("meta"):
            filled = RCNN(detector.config)
        filled.load_state_dict(state, assign=True)
        filled.save(path)
    else:
        content = {"state_dict": {mmdet.to_theirs(key): value for key, value in state.items()}}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip .pth")
    source = str(Path(zoo.__file__).parents[2])
    code = COST.format(source=source, path=str(path))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    builds, extra = map(float, run.stdout.split())
    assert builds < 20, "times what torchvision takes to build such a network"
    assert extra < 2 * path.stat().st_size


def test_a_safetensors_file_is_known_whatever_the_length_of_its_header(tmp_path):
    """The length's lowest byte may be 0x80, with which pickles begin."""
    path = tmp_path / "one.safetensors"
    for padding in range(0, 256, 8):
        save_file({"a": torch.zeros(1)}, path, {"padding": "x" * padding})
        if path.read_bytes()[0] == 0x80:
            break
    else:
        raise AssertionError("no header of that length")
    assert reading.kind(path) == "safetensors"
