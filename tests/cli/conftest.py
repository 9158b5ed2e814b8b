"""What tests of commands share: small weights and a photo."""

import json

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A small untrained detector with random offsets, in a file of its own."""
    from deformscope.detectors.dense.config import DenseConfig
    from deformscope.detectors.dense.dense import DenseDetector

    torch.manual_seed(0)
    config = DenseConfig(("cat", "dog"), channels=16, shorter_side=64, longer_side=128)
    detector = DenseDetector(config)
    for head in detector.heads.values():
        torch.nn.init.normal_(head.deform.conv_offset.weight, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    detector.save(path)
    return path


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "a photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def score_folder(tmp_path):
    """Six photos of bright boxes in COCO's layout; the last one is cut off."""
    random = np.random.default_rng(5)
    (tmp_path / "boxes/annotations").mkdir(parents=True)
    (tmp_path / "boxes/val").mkdir()
    images, objects = [], []
    for number in range(6):
        noise = random.integers(0, 120, (72, 104, 3), dtype=np.uint8)
        x, y, w, h = (int(random.integers(*span)) for span in ((0, 50), (0, 30), (20, 50), (20, 40)))
        noise[y : y + h, x : x + w] += 100
        Image.fromarray(noise).save(tmp_path / f"boxes/val/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 72, "width": 104})
        found = {"id": number + 1, "image_id": number, "category_id": 1, "bbox": [x, y, w, h], "area": w * h}
        objects.append(found | {"iscrowd": 0})
    last = tmp_path / "boxes/val/5.png"
    last.write_bytes(last.read_bytes()[:2000])
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "boxes/annotations/instances_val.json").write_text(json.dumps(content))
    return tmp_path / "boxes"


@pytest.fixture
def deformable_detr(tmp_path, capsys):
    """The folder of a small untrained Deformable DETR of transformers, with its image processor."""
    transformers = pytest.importorskip("transformers")
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    config = transformers.DeformableDetrConfig(
        backbone_config=transformers.ResNetConfig(**sizes, out_features=["stage2", "stage3", "stage4"]),
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=32, encoder_layers=1,
        decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        num_queries=7, num_feature_levels=3, id2label={0: "cat", 1: "dog"}, disable_custom_kernels=True,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.DeformableDetrForObjectDetection(config).save_pretrained(tmp_path / "model")
    size = {"shortest_edge": 64, "longest_edge": 128}
    transformers.DeformableDetrImageProcessor(size=size).save_pretrained(tmp_path / "model")
    capsys.readouterr()  # progress bars
    return tmp_path / "model"
