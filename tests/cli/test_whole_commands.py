"""Commands from beginning to end, as a person uses them: demo, score, serve."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image


def test_demo_draws_a_sample_photo_and_its_page_without_a_network(command, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise AssertionError("the demo went to the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    out = tmp_path / "demo"
    code, printed, complaints = command("demo", "--out", out)
    assert (code, complaints) == (0, "")
    files = [Path(line) for line in printed.splitlines()]
    assert {file.name for file in files} >= {
        "figure2.png",
        "figure3.png",
        "overview.png",
        "manifest.json",
        "explore.html",
    }
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as picture:
                assert min(picture.size) > 100
    page = (out / "explore.html").read_text()
    assert "cat.png" in page and "heads.stride16.deform" in page
    assert len(json.loads((out / "manifest.json").read_text())["photos"]) == 1


def test_score_prints_verdicts_and_writes_numbers_tables_and_a_report(command, weights, score_folder, tmp_path):
    out = tmp_path / "out"
    arguments = ("--detector", weights, "--out", out, "--workers", 0, "--no-crops", "--broken", "skip")
    code, printed, _ = command("score", score_folder, *arguments)
    assert code == 0
    assert len(printed.splitlines()) < 60  # verdicts, not tables
    assert printed.rstrip().endswith("report.html")
    assert {"scores.json", "tables.md", "report.html"} <= {path.name for path in out.iterdir()}
    assert json.loads((out / "scores.json").read_text())
    assert "<html" in (out / "report.html").read_text()
    before = (out / "scores.json").read_text()
    code, _, _ = command("score", score_folder, *arguments)  # from its records
    assert code == 0 and (out / "scores.json").read_text() == before


def test_score_does_not_pass_on_what_pillow_says_of_damaged_exif(command, weights, score_folder, tmp_path, recwarn):
    """Photos are read in a thread, which cannot ignore warnings itself."""
    damaged = score_folder / "val/0.png"
    Image.open(damaged).save(damaged, exif=b"Exif\0\0II*\0\x08\0\0\0\3\0")
    arguments = ("--detector", weights, "--out", tmp_path / "out", "--no-crops", "--broken", "skip", "--workers", 0)
    assert command("score", score_folder, *arguments)[0] == 0
    assert not [one for one in recwarn if "PIL" in one.filename]


@pytest.mark.skipif(sys.platform == "win32", reason="ends the server with SIGINT")
def test_serve_answers_on_its_port_until_it_is_interrupted(weights):
    pytest.importorskip("gradio", reason="needs Gradio: pip install 'deformscope[serve]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    source = str(Path(__file__).parents[2] / "src")
    server = subprocess.Popen(
        [sys.executable, "-m", "deformscope.cli", "serve", "--detector", str(weights), "--port", str(port)],
        env=os.environ | {"PYTHONPATH": source, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout.readline().strip() == f"http://127.0.0.1:{port}"
        body = until_answered(f"http://127.0.0.1:{port}/", server)
        assert "small.safetensors" in body
        assert str(weights.parent) not in body
        server.send_signal(signal.SIGINT)
        _, complaints = server.communicate(timeout=60)
    finally:
        server.kill()
    assert "Traceback" not in complaints
    assert server.returncode in (0, 130)


def until_answered(url: str, server: subprocess.Popen) -> str:
    """The page, as soon as the server that says its address listens there."""
    while True:
        assert server.poll() is None, server.stderr.read()
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return answer.read().decode()
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionError):
                raise
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs the peak of a process's memory")
@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("command", ["layers", "diagnose", "explain --min-score 0.001"])
def test_a_photo_of_100_megapixels_takes_at_most_400_mb(command, suffix, cat, tmp_path):
    def peak(size):
        Image.open(cat).convert("RGB").resize(size).save(tmp_path / f"photo.{suffix}")
        measure = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)"
        )
        measure += "; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        name, *options = command.split()
        line = [sys.executable, "-m", "deformscope.cli", name, f"photo.{suffix}", *options]
        return int(subprocess.check_output([sys.executable, "-c", measure, *line], cwd=tmp_path)) / 1024

    assert peak((12000, 8300)) - peak((600, 415)) < 400
