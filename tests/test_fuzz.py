"""Thousands of broken annotation files, photos, checkpoints and analyses: one line of error, or the right thing.

No traceback, no crash, no hang, and nothing that is quietly zero: what is taken has the AP of its own objects.
"""

import io
import json
import pickle
import random
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import checked, garbled, in_time, spoilt
from PIL import Image

from deformscope import Analysis, DeformscopeError, Fields
from deformscope.datasets.coco import read_coco
from deformscope.datasets.photos import header
from deformscope.datasets.values import MalformedError, run_lengths
from deformscope.detectors.detector import Detector
from deformscope.detectors.zoo import load
from deformscope.metrics.coco import average_precision
from deformscope.photo import read
from deformscope.score.scenes import open_folder
from deformscope.training.sources import CocoFolder


def build_folder(root: Path) -> tuple[Path, dict]:
    """Three photos, four objects: polygons, run lengths, a crowd."""
    (root / "val").mkdir(parents=True)
    (root / "annotations").mkdir()
    sizes, boxes = (
        [(60, 80), (90, 64), (48, 100)],
        [[(10, 12, 30, 20), (40, 5, 25, 33)], [(0, 0, 50, 70)], [(4, 6, 40, 30)]],
    )
    images, objects = [], []
    for number, ((height, width), own) in enumerate(zip(sizes, boxes, strict=True), 1):
        array = np.random.default_rng(number).integers(0, 255, (height, width, 3)).astype(np.uint8)
        Image.fromarray(array).save(root / "val" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        for x, y, w, h in own:
            mask = np.zeros((height, width), dtype=bool)
            mask[y : y + h, x : x + w] = True
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            objects.append({"id": len(objects) + 1, "image_id": number, "category_id": number % 2 + 1})
            objects[-1] |= {"bbox": [x, y, w, h], "area": w * h, "iscrowd": int(number == 3)}
            objects[-1]["segmentation"] = run_lengths(mask) if number == 2 else outline
    content = {"images": images, "annotations": objects}
    content["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return root / "annotations" / "instances_val.json", content


def outcomes(root: Path, broken: str) -> list:
    """What each of the three makes of the folder: its error, or how many objects it sees where."""
    file = root / "annotations" / "instances_val.json"
    found = []

    def score():
        photos = open_folder(root, broken=broken)
        scenes = [photos.scene(i) for i in range(len(photos.images))]
        return sorted(sorted((t.category, t.box, t.ignored) for t in s.things) for s in scenes)

    def train():
        source = CocoFolder(root, "val", broken=broken)
        seen = []
        for i in range(len(source)):
            sample = source.load(i)
            rows = zip(sample.labels.tolist(), sample.boxes.tolist(), sample.ignore.tolist(), strict=True)
            seen.append(sorted((source.names[label], tuple(box), ignored) for label, box, ignored in rows))
        return sorted(seen)

    def evaluate():
        dataset = read_coco(root, broken=broken)
        truth = dataset.truth()
        pairs = [(photo, one) for photo in dataset.photos for one in photo.objects]
        exact, masked = [], True
        for (photo, one), noted in zip(pairs, truth["annotations"], strict=True):
            mask = photo.mask(one)
            masked &= mask is not None and bool(mask.any())
            code = None if mask is None else run_lengths(mask)
            if not one.ignored:
                exact.append({**noted, "score": 0.9, "segmentation": code})
        for kind in ("bbox", "segm")[: 1 + masked]:
            ap = average_precision(truth, exact, kind=kind)["ap"]
            assert ap == pytest.approx(100, abs=1e-6) if exact else ap is None, f"{kind}: a silent {ap}"
        return len(exact)

    for user in (score, train, evaluate):
        try:
            found.append(user())
        except DeformscopeError as error:
            found.append(checked(error, file))
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::deformscope.errors.DeformscopeWarning")
@pytest.mark.parametrize("seed", range(10))
def test_broken_annotation_files(tmp_path, seed):
    file, content = build_folder(tmp_path)
    rng = random.Random(seed)
    refused = 0
    for case in range(100):
        if case % 4:
            text = json.dumps(spoilt(rng, content))
            file.write_bytes(text.encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16"))))
        else:
            file.write_bytes(garbled(rng, json.dumps(content).encode()))
        with in_time():
            for broken in ("refuse", "skip"):
                score, train, evaluate = outcomes(tmp_path, broken)
                if isinstance(score, str):
                    assert score == train == evaluate
                    refused += broken == "refuse"
                else:
                    assert not isinstance(evaluate, str)
                    # Training's boxes are float32.
                    assert train == [[(n, tuple(np.float32(b).tolist()), i) for n, b, i in own] for own in score]
    assert 20 < refused < 100  # most are broken, and some are not


# photos


def pictures() -> dict[str, bytes]:
    """Small photos of many formats, with EXIF where it can be."""
    ramp = np.stack([np.arange(30 * 44).reshape(30, 44) % 251] * 3, axis=-1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    made = {}
    colour, grey = Image.fromarray(ramp), Image.fromarray(ramp[..., 0])
    wide = Image.fromarray(ramp[..., 0].astype(np.uint16) * 200)
    real = Image.fromarray(ramp[..., 0].astype(np.float32) / 251)
    for name, image, settings in (
        ("a.jpg", colour, {"exif": exif}),
        ("progressive.jpg", colour, {"exif": exif, "progressive": True}),
        ("cmyk.jpg", colour.convert("CMYK"), {}),
        ("a.png", colour, {"exif": exif}),
        ("palette.png", colour.quantize(9), {}),
        ("wide.png", wide, {}),
        ("clear.png", colour.convert("RGBA"), {}),
        ("a.tif", colour, {"exif": exif, "compression": "tiff_lzw"}),
        ("real.tif", real, {}),
        ("wide.tif", wide, {}),
        ("a.webp", colour, {"exif": exif}),
        ("a.gif", grey, {}),
        ("a.bmp", colour, {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.split(".")[-1].upper()), **settings)
        made[name] = buffer.getvalue()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_broken_photos(tmp_path, seed):
    rng, originals = random.Random(1000 + seed), pictures()
    read_in_spite = 0
    for _ in range(100):
        name = rng.choice(sorted(originals))
        path = tmp_path / name
        path.write_bytes(garbled(rng, originals[name]))
        with in_time():
            try:
                array = read(path)
            except DeformscopeError as error:
                checked(error, path)
                continue
            assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size
            read_in_spite += 1
            # What can be read has a header that tells its size.
            try:
                assert header(path).upright == array.shape[:2]
            except MalformedError as error:
                raise AssertionError(f"{name}: read, and yet {error}") from None
    assert read_in_spite > 5


# checkpoints


def checkpoints(root: Path) -> dict[str, bytes]:
    """Small files of every kind that is read."""
    from deformscope.detectors.checkpoints import detectron2, mmdet
    from deformscope.detectors.dense.config import DenseConfig
    from deformscope.detectors.dense.dense import SmallDetector
    from deformscope.detectors.rcnn.config import Deformable, RCNNConfig
    from deformscope.detectors.rcnn.rcnn import RCNN

    torch.manual_seed(0)
    small = SmallDetector(DenseConfig(("cat", "dog"), channels=16))
    narrow = {"stem_channels": 4, "base_channels": 4, "fpn_channels": 8, "head_channels": 8, "mask_channels": 8}
    rcnn = RCNN(RCNNConfig(("cat", "dog"), deformable=Deformable.parse("dconv_c3-c5"), **narrow))
    small.save(root / "small.safetensors")
    rcnn.save(root / "rcnn.safetensors")
    theirs = {mmdet.to_theirs(key): value for key, value in rcnn.state_dict().items()}
    torch.save({"state_dict": theirs, "meta": {"CLASSES": ("cat", "dog")}}, root / "mmdet.pth")
    torch.save({"state_dict": theirs}, root / "legacy.pth", _use_new_zipfile_serialization=False)
    arrays = {detectron2.to_theirs(key): value.numpy() for key, value in rcnn.state_dict().items()}
    with (root / "detectron2.pkl").open("wb") as file:
        pickle.dump({"model": arrays, "__author__": "nobody"}, file, protocol=2)
    return {path.name: path.read_bytes() for path in root.iterdir()}


def with_config(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file of ours whose configuration, or a tensor's place or type, is another."""
    (length,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + length])
    if rng.random() < 0.7:
        head["__metadata__"]["config"] = json.dumps(spoilt(rng, json.loads(head["__metadata__"]["config"])))
    else:
        head = spoilt(rng, head)
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_broken_checkpoints(tmp_path, seed):
    (tmp_path / "whole").mkdir()
    rng, originals = random.Random(2000 + seed), checkpoints(tmp_path / "whole")
    for _ in range(50):
        name = rng.choice(sorted(originals))
        path = tmp_path / name
        ours = name.endswith(".safetensors")
        path.write_bytes((with_config if ours and rng.random() < 0.6 else garbled)(rng, originals[name]))
        with in_time():
            try:
                detector = load(path)
            except DeformscopeError as error:
                checked(error, path)
                continue
            assert isinstance(detector, Detector)


# analyses


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_broken_analyses(tmp_path, seed, make_field):
    rng = random.Random(3000 + seed)
    fields = Fields({"one": make_field(g=1), "two": make_field(seed=1)})
    detection = {"boxes": torch.ones(2, 4), "labels": torch.tensor([0, 1]), "scores": torch.ones(2)}
    path = tmp_path / "a.safetensors"
    Analysis(np.zeros((20, 30, 3), np.uint8), fields, detection, ("cat", "dog"), "small").save(path)
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    for case in range(125):
        if case % 2:
            path.write_bytes(garbled(rng, whole))
        else:
            head = json.loads(whole[8 : 8 + length])
            inner = json.loads(head["__metadata__"]["header"])
            head["__metadata__"]["header"] = json.dumps(spoilt(rng, inner))
            text = json.dumps(head).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
        with in_time():
            try:
                Analysis.load(path)
            except DeformscopeError as error:
                checked(error, path)


def test_the_fuzz_finds_what_it_is_after():
    """Its own parts: garbled bytes differ, spoilt values too, and a hang is found."""
    rng = random.Random(0)
    assert garbled(rng, b"a" * 100) != b"a" * 100
    assert any(json.dumps(spoilt(rng, {"a": [1, {"b": 2}]})) != '{"a": [1, {"b": 2}]}' for _ in range(9))
    with pytest.raises(TimeoutError), in_time():
        signal.raise_signal(signal.SIGALRM)
