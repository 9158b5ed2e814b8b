"""Commands take networks of others, and say where they cannot use attention."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

OWN, DECODER = "python:queries_network:detector", "python:queries_network:without_encoder"


def test_figures_draws_what_the_network_has(command, photo, tmp_path):
    code, _, complaints = command(
        "figures", photo, "--detector", OWN, "--out", tmp_path / "all", "--min-score", 0.3, "--dpi", 40
    )
    assert (code, complaints) == (0, "")
    drawn = sorted(path.name for path in (tmp_path / "all" / photo.stem).iterdir())
    assert drawn == ["figure2.png", "figure3.png", "queries.png", "query-sizes.png"]
    code, *_ = command("figures", photo, "--detector", DECODER, "--out", tmp_path / "queries", "--dpi", 40, "--head", 1)
    assert code == 0
    drawn = sorted(path.name for path in (tmp_path / "queries" / photo.stem).iterdir())
    assert drawn == ["queries.png", "query-sizes.png"]
    manifest = json.loads((tmp_path / "queries" / "manifest.json").read_text())
    assert manifest["settings"]["head"] == 1 and manifest["detector"] == "queries"


def test_layers_lists_attention(command, photo):
    code, printed, _ = command("layers", photo, "--detector", OWN)
    assert code == 0
    assert "75, of all cells" in printed and "net.decoder.1" in printed and "weight per map" in printed


def test_explore_and_diagnose_take_them(command, photo, tmp_path):
    code, printed, complaints = command("explore", photo, "--detector", OWN, "--out", tmp_path / "page.html")
    assert (code, complaints) == (0, "") and '"kind":"queries"' in (tmp_path / "page.html").read_text(encoding="utf-8")
    code, printed, complaints = command("diagnose", photo, "--detector", DECODER)
    assert code in (0, 1) and complaints == "" and "net.decoder.1" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["figures", "PHOTO", "--view", "figure2", "--detector", DECODER], "--view 'figure2': queries has only object"),
        (["figures", "PHOTO", "--view", "figure1", "--detector", OWN], "--view 'figure1': queries has only an encoder"),
        (["figures", "PHOTO", "--head", "9", "--detector", DECODER], "--head 9: expected 0 to 1"),
        (["figures", "PHOTO", "--layer", "nothing", "--detector", OWN], "no deformable call named 'nothing'"),
        (["explain", "PHOTO", "--detector", OWN], "cannot be explained by a detection's number"),
        (["layers", "--detector", "python:queries_network"], "expected python:package.module:factory"),
        (["layers", "--detector", "hf:./nowhere"], "no such folder"),
    ],
)
def test_what_attention_cannot_do_is_one_line(arguments, said, command, photo, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, complaints = command(*[photo if one == "PHOTO" else one for one in arguments])
    assert code == 2
    assert said in complaints and complaints.count("\n") == 1


def test_explain_draws_the_query_of_a_detection_of_transformers(command, photo, tmp_path, capsys):
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
    out, detector = tmp_path / "why.png", f"hf:{tmp_path / 'model'}"
    arguments = ("explain", photo, "--detector", detector, "--min-score", 0.001, "--out", out, "--dpi", 40)
    code, printed, complaints = command(*arguments, "--of", "left")
    assert (code, complaints) == (0, "") and out.read_bytes()[:4] == b"\x89PNG"
    assert "strongest query's sum" in printed and "left" in printed.split("\n")[0]
    assert sum("encoder_attn" in line for line in printed.split("\n")) == 2
    out.unlink()
    for more, said in (
        (("--compare",), "--compare: model has no deformable convolution whose offsets"),
        (("--of", "iou"), "--of 'iou': expected one of 'score', 'left'"),
    ):
        code, printed, complaints = command(*arguments, *more)
        assert code == 2 and said in complaints and complaints.count("\n") == 1 and not out.exists()
    page = tmp_path / "page.html"
    code, _, complaints = command("explore", photo, "--detector", detector, "--explain", 1, "--out", page)
    assert code == 2 and not page.exists() and complaints.count("\n") == 1
    assert "the page shows attributions of deformable convolutions alone" in complaints


def test_score_needs_deformable_convolutions_and_writes_nothing_without(command, tmp_path):
    for name in ("annotations", "val"):
        (tmp_path / "data" / name).mkdir(parents=True)
    Image.fromarray(np.full((48, 64, 3), 90, dtype=np.uint8)).save(tmp_path / "data" / "val" / "1.png")
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 30, 30], "area": 900, "iscrowd": 0}
    annotation["segmentation"] = [[8, 8, 38, 8, 38, 38, 8, 38]]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 64, "height": 48}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [annotation],
    }
    (tmp_path / "data" / "annotations" / "instances_val.json").write_text(json.dumps(content))
    code, _, complaints = command("score", tmp_path / "data", "--detector", OWN, "--out", tmp_path / "scores")
    assert code == 2 and complaints.count("\n") == 1
    assert "queries: has deformable attention (net.encoder, net.decoder.0" in complaints
    assert not (tmp_path / "scores").exists()
    code, printed, complaints = command("evaluate", tmp_path / "data", "--detector", OWN)
    assert code == 0 and "queries on" in printed
