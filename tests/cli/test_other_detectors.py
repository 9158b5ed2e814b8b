"""Commands take networks of others, and say where they cannot use attention."""

import json

import pytest

OWN, DECODER = "python:queries_network:detector", "python:queries_network:without_encoder"
PLAIN = "python:queries_network:net"
"""The bare network, which nobody decodes."""


def test_explain_draws_a_detection_of_a_users_own_network(command, photo, tmp_path):
    out = tmp_path / "why.png"
    code, printed, complaints = command("explain", photo, "--detector", OWN, "--detection", 1, "--out", out)
    assert (code, complaints) == (0, "") and out.read_bytes()[:4] == b"\x89PNG"
    assert "net.decoder.1" in printed and "strongest query's sum" in printed


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
        (["figures", "PHOTO", "--composed", "--detector", OWN], "--composed: queries has attention"),
        (
            ["figures", "PHOTO", "--layer", "*decoder*", "--view", "figure2", "--detector", OWN],
            "queries has only object queries in these layers",
        ),
        (["ablate", "shapes", "--at-test-time", OWN], "the model has no DeformConv whose offsets could be split"),
        (["explain", "PHOTO", "--detector", PLAIN], "cannot be explained by a detection's number"),
        (["explain", "PHOTO", "--detector", OWN, "--detection", "99"], "--detection 99: expected 0 to 6"),
        (["explain", "PHOTO", "--detector", OWN, "--of", "iou"], "--of 'iou': expected one of 'score', 'left'"),
        (["layers", "--detector", "python:queries_network"], "expected python:package.module:factory"),
        (["layers", "--detector", "hf:./nowhere"], "no such folder"),
    ],
)
def test_what_attention_cannot_do_is_one_line(arguments, said, command, photo, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, complaints = command(*[photo if one == "PHOTO" else one for one in arguments])
    assert code == 2
    assert said in complaints and complaints.count("\n") == 1


def test_explain_draws_the_query_of_a_detection_of_transformers(command, photo, deformable_detr, tmp_path):
    out, detector = tmp_path / "why.png", f"hf:{deformable_detr}"
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


def test_score_measures_encoders_and_goes_on(command, score_folder, deformable_detr, tmp_path):
    out, detector = tmp_path / "scores", f"hf:{deformable_detr}"
    arguments = ("score", score_folder, "--detector", detector, "--out", out, "--no-crops", "--workers", 0)
    code, printed, _ = command(*arguments, "--max-photos", 1)
    assert code == 0 and (out / "report.html").exists()
    code, printed, complaints = command(*arguments, "--max-photos", 3)
    assert code == 0 and "Traceback" not in complaints
    assert "Features condense on objects" in printed and "self_attn[level" in printed
    records = [json.loads(line) for line in (out / "records.0.jsonl").read_text().splitlines()]
    assert [one["index"] for one in records] == [0, 1, 2]
    layers = {name for one in records for name in one.get("views", {}).get("whole", {}).get("layers", {})} - {"*"}
    assert layers == {f"net.model.encoder.layers.0.self_attn[level {level}]" for level in range(3)}


def test_score_measures_the_convolutions_of_a_users_own_network(command, score_folder, tmp_path, monkeypatch):
    (tmp_path / "my_own_toy.py").write_text(
        "import torch\nfrom torch import nn\nfrom torchvision.ops import DeformConv2d\n\n"
        "class Toy(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.stem, self.offsets = nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 18, 3, padding=1)\n"
        "        self.deform = DeformConv2d(4, 4, 3, padding=1)\n\n"
        "    def forward(self, images):\n"
        "        seen = self.stem(images)\n"
        "        return self.deform(seen, self.offsets(seen))\n\n"
        "def detector():\n    torch.manual_seed(0)\n    return Toy()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ("score", score_folder, "--detector", "python:my_own_toy:detector", "--max-photos", 2, "--workers", 0)
    code, printed, complaints = command(*arguments, "--out", "out")
    assert code == 0 and "Traceback" not in complaints
    assert "net.deform" in printed and (tmp_path / "out" / "report.html").exists()


def test_object_queries_alone_cannot_be_scored_and_nothing_is_written(command, score_folder, tmp_path):
    code, _, complaints = command("score", score_folder, "--detector", DECODER, "--out", tmp_path / "scores")
    assert code == 2 and complaints.count("\n") == 1
    assert "queries: has only object queries (net.decoder.0, net.decoder.1)" in complaints
    assert "studies/attention/measure.py" in complaints and not (tmp_path / "scores").exists()


def test_evaluate_takes_them(command, score_folder):
    code, printed, complaints = command("evaluate", score_folder, "--detector", OWN, "--max-photos", 3)
    assert (code, complaints) == (0, "") and "queries on" in printed


def test_faithfulness_needs_detections_of_deformable_convolutions(command, score_folder, deformable_detr):
    for detector, said in (
        (PLAIN, "net: a detector of another library cannot be explained by a detection's number"),
        (OWN, "queries: its detections come from deformable attention"),
        (f"hf:{deformable_detr}", "model: its detections come from deformable attention"),
    ):
        arguments = ("faithfulness", score_folder, "--detector", detector, "--min-score", 0.001)
        code, printed, complaints = command(*arguments)
        assert code == 2 and printed == "" and said in complaints and complaints.count("\n") == 1


def test_figures_draws_what_the_chosen_layers_have(command, photo, tmp_path):
    for layer, wanted in (
        ("net.encoder", ["figure2.png", "figure3.png"]),
        ("net.encoder[level 1]", ["figure2.png", "figure3.png"]),
        ("net.decoder.1", ["queries.png", "query-sizes.png"]),
    ):
        out = tmp_path / layer
        arguments = ("figures", photo, "--detector", OWN, "--layer", layer, "--out", out, "--dpi", 30)
        code, _, complaints = command(*arguments)
        assert (code, complaints) == (0, "")
        assert sorted(path.name for path in (out / photo.stem).iterdir()) == wanted


def test_a_network_without_deformable_convolutions_is_named_as_it_was_given(command, photo, tmp_path):
    for arguments in (["layers"], ["figures", photo, "--out", tmp_path], ["diagnose", photo], ["explore", photo]):
        code, _, complaints = command(*arguments, "--detector", "python:torchvision.models:squeezenet1_1")
        assert code == 2
        assert complaints.startswith("deformscope: squeezenet1_1: no deformable convolution or attention in it")
        assert "AdaptedDetector" not in complaints and "block" not in complaints


def test_a_photo_that_cannot_be_read_is_code_2_alike(command, photo, weights, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photo")
    for arguments in (["figures", "--out", tmp_path], ["explore", "--out", tmp_path / "page.html"], ["diagnose"]):
        detector = "packaged" if arguments == ["diagnose"] else weights  # healthy
        code, _, complaints = command(*arguments, photo, bad, "--detector", detector)
        assert (code, complaints.count("\n")) == (2, 1) and "bad.jpg: not an image" in complaints
