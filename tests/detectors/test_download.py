"""Downloads against a server on this machine that misbehaves on purpose."""

import errno
import hashlib
import http.server
import shutil
import socket
import subprocess
import sys
import threading
from collections import namedtuple

import platformdirs
import platformdirs.unix
import platformdirs.windows
import pytest

from deformscope.detectors import download
from deformscope.detectors.download import cache_folder, fetch
from deformscope.errors import DeformscopeError

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at any path; ``breaks`` says after how many bytes each of the next connections is cut."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.breaks, self.ranges = CONTENT, [], True
        self.seen: list[str | None] = []

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients that leave early are part of the tests
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/model-{DIGEST[:8]}.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.seen.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        total = len(self.server.content)
        if "missing" in self.path:
            self.send_error(404)
            return
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        most = self.server.breaks.pop(0) if self.server.breaks else total
        self.wfile.write(self.server.content[start : start + most])
        self.wfile.flush()
        if start + most < total:
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    one = Server()
    thread = threading.Thread(target=one.serve_forever, daemon=True)
    thread.start()
    yield one
    one.shutdown()
    one.server_close()
    thread.join(5)


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_file_is_fetched_once_and_kept(server, tmp_path):
    target = tmp_path / "cache" / "mmdet" / "model.pth"
    assert fetch(server.url, target, DIGEST[:8]) == target
    assert target.read_bytes() == CONTENT
    assert fetch(server.url, target, DIGEST[:8]) == target
    assert server.seen == [None]
    assert [p.name for p in target.parent.iterdir()] == ["model.pth"]


def test_a_broken_connection_is_taken_up_where_it_broke(server, tmp_path):
    server.breaks = [100_000, 300_000, 1]
    fetch(server.url, tmp_path / "model.pth", DIGEST[:8])
    assert (tmp_path / "model.pth").read_bytes() == CONTENT
    assert server.seen == [None, "bytes=100000-", "bytes=400000-", "bytes=400001-"]


@pytest.mark.parametrize("part", [CONTENT[:70_000], CONTENT, CONTENT + b"more"], ids=["a part", "all", "more"])
def test_a_call_goes_on_from_what_an_earlier_one_left(server, tmp_path, part):
    (tmp_path / "model.pth.part").write_bytes(part)
    fetch(server.url, tmp_path / "model.pth", DIGEST[:8])
    assert server.seen[0] == f"bytes={len(part)}-"
    assert (tmp_path / "model.pth").read_bytes() == CONTENT
    assert not (tmp_path / "model.pth.part").exists()


def test_a_server_without_ranges_is_begun_anew(server, tmp_path):
    server.ranges, server.breaks = False, [100_000]
    fetch(server.url, tmp_path / "model.pth", DIGEST[:8])
    assert (tmp_path / "model.pth").read_bytes() == CONTENT


def test_a_connection_that_breaks_again_and_again_ends_in_one_line_and_keeps_what_arrived(server, tmp_path):
    server.breaks = [5000] + [0] * 20
    with pytest.raises(DeformscopeError, match="cannot download") as error:
        fetch(server.url, tmp_path / "model.pth", DIGEST[:8])
    assert server.url in str(error.value) and str(tmp_path / "model.pth") in str(error.value)
    assert (tmp_path / "model.pth.part").stat().st_size == 5000
    assert len(server.seen) == 1 + download.ATTEMPTS


def test_a_wrong_checksum_leaves_nothing_behind(server, tmp_path):
    with pytest.raises(DeformscopeError, match="sha256 than 00000000") as error:
        fetch(server.url, tmp_path / "model.pth", "00000000")
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_a_damaged_part_is_found_out_and_the_next_call_succeeds(server, tmp_path):
    (tmp_path / "model.pth.part").write_bytes(b"x" * 1000)
    with pytest.raises(DeformscopeError, match="load again"):
        fetch(server.url, tmp_path / "model.pth", DIGEST[:8])
    fetch(server.url, tmp_path / "model.pth", DIGEST[:8])


def test_a_damaged_file_in_the_cache_is_found_out(server, tmp_path):
    (tmp_path / "model.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(DeformscopeError, match=r"damaged.*delete it"):
        fetch(server.url, tmp_path / "model.pth", DIGEST[:8])
    assert server.seen == []


def test_a_disk_without_room_is_noticed_before_it_is_full(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6, len(CONTENT) - 1))
    with pytest.raises(DeformscopeError, match=r"no room left for model\.pth") as error:
        fetch(server.url, tmp_path / "model.pth", DIGEST[:8])
    assert "DEFORMSCOPE_CACHE" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "model.pth").exists()


def test_a_disk_that_fills_up_ends_in_one_line_and_is_gone_on_from(server, tmp_path, monkeypatch):
    """Another program fills the disk meanwhile: a limit on this process's files stands in for it."""
    resource = pytest.importorskip("resource")
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    # Beyond the limit the system says EFBIG where a full disk says ENOSPC.
    monkeypatch.setattr(errno, "ENOSPC", errno.EFBIG)
    try:
        with pytest.raises(DeformscopeError, match="no room left") as error:
            fetch(server.url, tmp_path / "model.pth", DIGEST[:8])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(error.value) and not (tmp_path / "model.pth").exists()
    fetch(server.url, tmp_path / "model.pth", DIGEST[:8])
    assert server.seen[-1] != "bytes=0-" and server.seen[-1] is not None


def test_offline_says_the_url_and_where_to_put_the_file(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/model.pth"
    with pytest.raises(DeformscopeError) as error:
        fetch(url, tmp_path / "model.pth", "00")
    text = str(error.value)
    assert url in text and f"put it at {tmp_path / 'model.pth'}" in text and "\n" not in text


def test_what_the_server_does_not_have_is_said_at_once(server, tmp_path):
    with pytest.raises(DeformscopeError, match="404"):
        fetch(server.url.replace("model", "missing"), tmp_path / "model.pth", "00")
    assert len(server.seen) == 1


def test_two_processes_do_not_append_to_one_file(server, tmp_path):
    program = (
        "import sys, filelock\n"
        "with filelock.FileLock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "model.pth.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DeformscopeError, match=r"model\.pth: another process is fetching it"):
            fetch(server.url, tmp_path / "model.pth", DIGEST[:8])
        assert server.seen == []
        other.stdin.close()
    fetch(server.url, tmp_path / "model.pth", DIGEST[:8])
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_a_folder_that_may_not_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeformscopeError, match="DEFORMSCOPE_CACHE"):
        fetch(server.url, tmp_path / "file" / "model.pth", DIGEST[:8])


def test_the_cache_folder_is_chosen_or_the_platforms(monkeypatch, tmp_path):
    monkeypatch.setenv("DEFORMSCOPE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("DEFORMSCOPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    folders = {
        platformdirs.unix.Unix: tmp_path / "xdg" / "deformscope",
        platformdirs.windows.Windows: tmp_path / "local" / "deformscope" / "Cache",
    }
    monkeypatch.setattr(platformdirs.windows, "get_win_folder", lambda name: str(tmp_path / "local"))
    for system, folder in folders.items():
        monkeypatch.setattr(platformdirs, "PlatformDirs", system)
        assert cache_folder() == folder
