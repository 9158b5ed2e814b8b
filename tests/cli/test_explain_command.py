"""`deformscope explain`: figures and a table of one detection."""

import pytest


def test_a_detection_is_drawn_and_its_layers_listed(command, cat, tmp_path):
    out = tmp_path / "why.png"
    code, printed, complaints = command("explain", cat, "--out", out, "--dpi", 40, "--compare")
    assert (code, complaints) == (0, "")
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "why-receptive-fields.png").exists()
    assert printed.split("\n")[0].startswith("cat 0.")
    assert ": log-odds " in printed.replace("\n", " ")
    assert sum(line.startswith("│ heads.") for line in printed.split("\n")) == 2
    assert str(out) in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--of", "size"), "score"),
        (("--at", "999,3"), "outside the photo"),
        (("--at", "here"), "expected X,Y in photo px"),
        (("--detection", "500"), "deformscope: --detection 500: expected 0 to"),
        (("--layer", "head9"), "head9"),
        (("--at", "1,1", "--min-score", "0.6"), "deformscope: --at 1,1: in none of"),
        (("--out", "why.jpg"), 'Invalid value "why.jpg" for --out. Expected a file ending in .png, .svg, .pdf.'),
    ],
)
def test_bad_input_gives_one_line_and_exit_code_2(command, cat, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, printed, complaints = command("explain", cat, *arguments)
    assert (code, printed) == (2, "")
    assert complaints.startswith("deformscope: ")
    assert complaints.count("\n") == 1
    assert message in complaints
    assert not list(tmp_path.iterdir())


def test_the_page_of_explore_holds_explanations_of_the_best_detections(command, cat, tmp_path):
    plain, explained = tmp_path / "plain.html", tmp_path / "explained.html"
    assert command("explore", cat, "--out", plain)[0] == 0
    assert command("explore", cat, "--out", explained, "--explain", 2)[0] == 0
    assert '"whys"' not in plain.read_text()
    assert explained.read_text().count('"largest"') == 2 * 2  # two detections, two layers of one level each
