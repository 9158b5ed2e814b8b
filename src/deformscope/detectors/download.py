"""Download checkpoints: interrupted downloads are resumed, files are verified and appear whole or not at all."""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

import platformdirs

from .. import files
from ..errors import DeformscopeError
from ..terminal.progress import ProgressBar

TIMEOUT = 30.0
"""Seconds without data after which a connection counts as broken."""
ATTEMPTS = 4
"""Number of consecutive breaks without any data after which a download fails."""
PAUSE = 0.5
"""Seconds to wait after the first such break; more after the next."""
CHUNK = 1 << 18


def cache_folder() -> Path:
    """The folder of downloaded checkpoints: ``DEFORMSCOPE_CACHE``, or the platform's cache folder."""
    if chosen := os.environ.get("DEFORMSCOPE_CACHE"):
        return Path(chosen).expanduser()
    return platformdirs.user_cache_path("deformscope", appauthor=False)


def fetch(url: str, target: Path, sha256: str | None = None) -> Path:
    """Download ``url`` to ``target`` if it does not exist, with a progress bar on stderr.

    Partial downloads are kept as ``….part`` and resumed by this or the next call. The SHA-256 of the file must start
    with the hexadecimal digits ``sha256``, if given. Raises DeformscopeError, with the URL and the place for the file,
    when the network, the disk or the checksum fails.
    """
    if target.is_file():
        _check(target, sha256, f"{target}: damaged, its sha256 does not start with {sha256}; delete it and load again")
        return target
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        busy = f"{target.name}: another process is fetching it; wait for that one to finish"
        with files.locked(target.with_name(target.name + ".lock"), busy, remove=True):
            if target.is_file():  # written by another process meanwhile
                return target
            with part.open("ab") as file:
                _receive(url, file, target)
                file.flush()
                os.fsync(file.fileno())
            try:
                _check(part, sha256, f"{url}: what arrived has another sha256 than {sha256}…; deleted, load again")
            except DeformscopeError:
                part.unlink(missing_ok=True)  # a damaged part must not be resumed
                raise
            part.replace(target)
    except OSError as error:
        raise _disk_trouble(error, url, target) from None
    return target


def _receive(url: str, file: BinaryIO, target: Path) -> None:
    """Append to ``file`` until ``url`` is complete, requesting the rest after each break."""
    failures = 0
    with ProgressBar(target.name, in_bytes=True) as bar:
        while True:
            before = file.seek(0, os.SEEK_END)
            try:
                if _one_connection(url, file, target, bar):
                    return
                reason: object = "the connection broke off"
            except urllib.error.HTTPError as error:
                reason = f"the server says {error.code} {error.reason}"
                if error.code < 500:
                    raise _unreachable(url, target, reason) from None
            except urllib.error.URLError as error:
                reason = error.reason
            except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
                reason = error or type(error).__name__
            after = file.seek(0, os.SEEK_END)
            failures = failures + 1 if after == before else 0
            # If no data ever arrived there is no network, and waiting does not help.
            if failures >= ATTEMPTS or (failures and not after):
                raise _unreachable(url, target, reason) from None
            time.sleep(PAUSE * failures)


def _one_connection(url: str, file: BinaryIO, target: Path, bar: ProgressBar) -> bool:
    """Append the data of one request; returns whether the file is complete."""
    start = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"User-Agent": "deformscope"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        if error.headers.get("Content-Range", "").endswith(f"/{start}"):
            return True
        file.truncate(0)  # longer than the file on the server, so it belongs to another file
        return False
    with response:
        if start and not _continues(response, start):
            file.truncate(0)
            start = 0
            if response.status == http.HTTPStatus.PARTIAL_CONTENT:
                return False
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        if total is not None and shutil.disk_usage(target.parent).free < total - start:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        while chunk := response.read(CHUNK):
            file.write(chunk)
            start += len(chunk)
            bar.update(start, total=total)
    return total is None or start == total


def _continues(response: http.client.HTTPResponse, start: int) -> bool:
    """Whether a response continues at byte ``start`` (servers may ignore the range and send everything)."""
    return response.status == http.HTTPStatus.PARTIAL_CONTENT and response.headers.get("Content-Range", "").startswith(
        f"bytes {start}-"
    )


def _check(path: Path, sha256: str | None, complaint: str) -> None:
    if sha256 is not None and not files.sha256(path).startswith(sha256.lower()):
        raise DeformscopeError(complaint)


def _unreachable(url: str, target: Path, reason: object) -> DeformscopeError:
    text = " ".join(str(reason).split())
    return DeformscopeError(f"cannot download {url} ({text}); get it by other means and put it at {target}")


def _disk_trouble(error: OSError, url: str, target: Path) -> DeformscopeError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DeformscopeError(
            f"{target.parent}: no room left for {target.name}; free some, or set DEFORMSCOPE_CACHE to a roomier folder "
            "(what has arrived is kept and the download goes on from there)"
        )
    reason = error.strerror or type(error).__name__
    return DeformscopeError(f"{target}: cannot be written ({reason}); set DEFORMSCOPE_CACHE to a folder of yours")
