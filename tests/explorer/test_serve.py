"""The local app: loopback only, limited uploads, no folder of the machine in what it shows."""

import gc
import io
import os
import re
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("gradio", reason="needs Gradio: pip install 'deformscope[serve]'")

import uvicorn
from fastapi.testclient import TestClient
from PIL import Image
from planted import planted_photo

from deformscope.errors import DeformscopeError
from deformscope.explorer import serve


def untrained(name: str) -> torch.nn.Module:
    """A detector with random offsets, or none for names that do not exist."""
    if name == "absent":
        raise DeformscopeError("/home/somebody/absent: no such detector")
    from deformscope.detectors.dense.config import DenseConfig
    from deformscope.detectors.dense.dense import DenseDetector

    torch.manual_seed(3)
    detector = DenseDetector(DenseConfig(("cat",)), name).eval()
    for module in detector.modules():
        if hasattr(module, "conv_offset"):
            torch.nn.init.normal_(module.conv_offset.weight, std=0.02)
    return detector


def jpeg(noise: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(planted_photo()).save(buffer, "JPEG")
    return buffer.getvalue() + bytes(noise)


@pytest.fixture(scope="module")
def built():
    return serve.app(["first", "absent"], load=untrained, max_megabytes=1)


@pytest.fixture(scope="module")
def address(built):
    server = uvicorn.Server(uvicorn.Config(built, host=serve.LOOPBACK, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not server.started and time.monotonic() < until:
        time.sleep(0.1)
    yield f"http://{serve.LOOPBACK}:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=10)


def test_only_requests_for_this_machine_are_answered(built):
    with TestClient(built, base_url="http://127.0.0.1") as client:
        assert client.get("/").status_code == 200
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 400


def test_answers_forbid_the_browser_to_ask_elsewhere(built):
    with TestClient(built, base_url="http://127.0.0.1") as client:
        answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy.replace("'unsafe-inline'", "")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_upload_above_the_limit_is_refused(built):
    with TestClient(built, base_url="http://127.0.0.1") as client:
        files = {"files": ("photo.jpg", jpeg(noise=1_200_000), "image/jpeg")}
        assert client.post("/gradio_api/upload", files=files).status_code == 413
        files = {"files": ("photo.jpg", jpeg(), "image/jpeg")}
        assert client.post("/gradio_api/upload", files=files).status_code == 200


def test_uploads_go_into_a_folder_of_this_process(built):
    with TestClient(built, base_url="http://127.0.0.1") as client:
        files = {"files": ("photo.jpg", jpeg(), "image/jpeg")}
        (upload,) = client.post("/gradio_api/upload", files=files).json()
    assert Path(tempfile.gettempdir(), "gradio") not in Path(upload).parents
    assert Path(upload).is_relative_to(os.environ[serve.UPLOAD_FOLDER])


def test_the_same_photo_can_be_dropped_twice_though_its_file_is_removed_once_read(tmp_path):
    path, uploads = tmp_path / "photo.jpg", serve.Uploads()
    path.write_bytes(jpeg())
    first = uploads.read(str(path))
    assert not path.exists()
    assert uploads.read(str(path)) is first
    path.write_bytes(jpeg()[:900])  # another one: read, and removed, again
    with pytest.raises(DeformscopeError, match="damaged"):
        uploads.read(str(path))
    assert not path.exists()
    del first
    gc.collect()
    with pytest.raises(DeformscopeError, match="no such file"):
        uploads.read(str(path))


def test_files_of_the_machine_are_not_served(built):
    with TestClient(built, base_url="http://127.0.0.1") as client:
        for path in ("/etc/passwd", serve.__file__):
            assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_a_page_is_kept_under_a_key_and_the_oldest_goes():
    pages = serve.Pages(max_pages=2)
    keys = [pages.add(text) for text in ("a", "b", "c")]
    assert [pages.get(key) for key in keys] == [None, "b", "c"]
    assert len(set(keys)) == 3 and all(len(key) >= 20 for key in keys)


def test_checkpoint_files_are_shown_without_their_folder(tmp_path):
    (tmp_path / "a").mkdir()
    files = [tmp_path / "mine.pth", tmp_path / "a" / "mine.pth"]
    for file in files:
        file.touch()
    names = ["packaged", "mmdet/mask_rcnn", *map(str, files)]
    assert serve.shown_names(names) == dict(
        zip(["packaged", "mmdet/mask_rcnn", "mine.pth", "mine.pth (2)"], names, strict=True)
    )


def test_an_error_names_the_file_and_not_its_folder():
    words = serve.without_folder("/tmp/x/y/photo.jpg: damaged", "/tmp/x/y/photo.jpg")
    assert words == "photo.jpg: damaged"


def test_a_port_that_is_taken_is_said(address):
    with pytest.raises(DeformscopeError, match="port="):
        serve.run(["packaged"], port=int(address.rsplit(":", 1)[1]))


def test_a_dropped_photo_becomes_its_page(watch, address, tmp_path):
    photo = tmp_path / "dropped & <b>bold.jpg"
    photo.write_bytes(jpeg())
    seen = watch()
    seen.page.goto(address)
    seen.page.locator("input[type=file]").set_input_files(str(photo), timeout=60_000)
    frame = seen.page.frame_locator("iframe[title='deformscope explorer']")
    frame.locator("#legend .words").wait_for(state="attached", timeout=60_000)
    assert "bold" in frame.locator("h1").inner_text()
    assert frame.locator("label.view", has_text="segments").is_visible()
    assert seen.page.get_by_text("Open on its own").get_attribute("href").startswith("/page/")
    outside = [url for url in seen.requests if not url.startswith((address, "data:", "blob:"))]
    assert outside == []
    assert not re.search(r"/(tmp|home|root|work)/", seen.page.content() + frame.locator("html").inner_text())


def test_the_app_opens_with_its_name_a_sentence_and_an_example(watch, address):
    seen = watch()
    seen.page.goto(address)
    seen.page.get_by_role("heading", name="deformscope").wait_for(timeout=60_000)
    assert "deformable convolutions" in seen.page.get_by_text("Drop a photo").inner_text()
    seen.page.get_by_role("button", name="example").click()
    frame = seen.page.frame_locator("iframe[title='deformscope explorer']")
    frame.locator("#legend .words").wait_for(state="attached", timeout=60_000)
    assert "cat" in frame.locator("h1").inner_text()


@pytest.mark.parametrize("name", ["broken.jpg", "notes.txt"])
def test_a_bad_file_takes_the_place_of_the_page_and_leaves_no_traceback(name, watch, address, tmp_path, capfd):
    bad, good = tmp_path / name, tmp_path / "good.jpg"
    bad.write_bytes(jpeg()[:900] if name == "broken.jpg" else b"no photo")
    good.write_bytes(jpeg())
    seen = watch()
    seen.page.goto(address)
    page = seen.page.locator("iframe[title='deformscope explorer']")
    seen.page.locator("input[type=file]").set_input_files(str(good), timeout=60_000)
    page.wait_for(timeout=60_000)
    seen.page.locator("input[type=file]").set_input_files(str(bad), timeout=60_000)
    words = seen.page.get_by_role("alert").filter(has_text=f"{name}:")
    words.wait_for(timeout=60_000)
    assert "/" not in words.inner_text()
    assert page.count() == 0
    assert seen.page.locator(".toast-body, .error").count() == 0
    seen.page.locator("input[type=file]").set_input_files(str(good), timeout=60_000)
    page.wait_for(timeout=60_000)
    assert words.count() == 0
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_folder_of_transformers_is_shown_without_the_folders_around_it(tmp_path):
    folder = tmp_path / "secret" / "rtdetr"
    folder.mkdir(parents=True)
    given = [f"hf:{folder}", "hf:owner/model", "python:mine:detector"]
    assert serve.shown_names(given) == {
        "hf:rtdetr": given[0],
        "hf:owner/model": given[1],
        "python:mine:detector": given[2],
    }
    words = serve.without_folder(f"detector='hf:{folder}': not loaded", f"hf:{folder}")
    assert words == "detector='hf:rtdetr': not loaded"
