"""A small local app: drop a photo, choose a detector, and the explorer's page appears. On loopback only.

Needs the extra ``serve`` (Gradio). The pages stay in memory, the latest few of them; nothing is written but Gradio's
upload, which is removed once it is read.
"""

from __future__ import annotations

import atexit
import html
import os
import secrets
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ..analysis import analyse
from ..errors import DeformscopeError
from ..photo import read
from .document import page

if TYPE_CHECKING:
    import numpy as np
    from fastapi import FastAPI
    from torch import nn

LOOPBACK = "127.0.0.1"
HOSTS = (LOOPBACK, "localhost")
MOST_MEGABYTES = 20
"""Larger uploads are refused."""
UPLOAD_FOLDER = "GRADIO_TEMP_DIR"
"""The environment variable that names Gradio's folder of uploads."""
MOST_PAGES = 8
"""Pages kept; the oldest goes when another comes."""
POLICY = (
    # Gradio's own program needs inline and evaluated scripts; what matters here is that nothing leaves the machine.
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
)
INTRODUCTION = """# deformscope
Drop a photo to see where the detector's deformable convolutions look: their offsets, cell by cell, and its detections.
Nothing leaves this machine."""
STYLE = "footer {display: none !important} .gradio-container {max-width: none !important}"


class Pages:
    """The latest pages by an address that cannot be guessed."""

    def __init__(self, max_pages: int = MOST_PAGES) -> None:
        self._texts: OrderedDict[str, str] = OrderedDict()
        self._max_pages = max_pages

    def add(self, text: str) -> str:
        """Keep a page; returns its key."""
        key = secrets.token_urlsafe(16)
        self._texts[key] = text
        while len(self._texts) > self._max_pages:
            self._texts.popitem(last=False)
        return key

    def get(self, key: str) -> str | None:
        """The page of that key, if it is still kept."""
        return self._texts.get(key)


class Uploads:
    """Reads uploaded photos, and removes their files.

    Gradio names files by their content. A photo that is dropped twice at the same time is one file, which is gone when
    it is to be read again.
    """

    def __init__(self) -> None:
        self._known: WeakValueDictionary[str, np.ndarray] = WeakValueDictionary()
        """By path, for as long as a session keeps the photo."""

    def read(self, upload: str) -> np.ndarray:
        """The photo of this path, RGB uint8 ``[h w 3]``. Raises DeformscopeError where it cannot be read."""
        path = Path(upload)
        known = self._known.get(upload)
        if known is not None and not path.exists():
            return known
        try:
            photo = self._known[upload] = read(path)
        finally:
            path.unlink(missing_ok=True)
        return photo


def app(
    detectors: Sequence[str] = ("packaged",),
    *,
    load: Callable[[str], nn.Module] | None = None,
    max_megabytes: int = MOST_MEGABYTES,
) -> FastAPI:
    """The app for any ASGI server; :func:`run` starts it. ``load`` makes a detector of a name (``deformscope.load``).

    Only requests for 127.0.0.1 or localhost are answered, so that no other site can reach it through a name of its
    own. Detectors are shown by name, checkpoint files without their folder. Raises DeformscopeError without Gradio.
    """
    try:
        import gradio as gr
        from fastapi import FastAPI, Request, Response
        from fastapi.responses import HTMLResponse, PlainTextResponse
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError:
        raise DeformscopeError("gradio is not installed; get it with: pip install 'deformscope[serve]'") from None
    if not detectors:
        raise DeformscopeError("detectors=(): expected at least one name or checkpoint file")
    _own_folder()
    shown = shown_names(detectors)
    ready = lru_cache(maxsize=1)(load or _load)
    pages, uploads = Pages(), Uploads()

    # An error takes the place of the page. As gr.Error it would lie on the old one, and be a traceback in the terminal.
    def explored(photo: np.ndarray, title: str, choice: str) -> str:
        try:
            text = page([analyse(ready(shown[choice]), photo)], [title])
        except DeformscopeError as error:
            return _alert(without_folder(str(error), shown[choice]))
        return _frame(pages.add(text))

    def dropped(upload: str, choice: str) -> tuple[str, tuple[np.ndarray, str] | None, None]:
        try:
            photo = uploads.read(upload)
        except DeformscopeError as error:
            return _alert(without_folder(str(error), upload)), None, None
        name = Path(upload).name
        return explored(photo, name, choice), (photo, name), None

    def example(choice: str) -> tuple[str, tuple[np.ndarray, str]]:
        import skimage.data

        photo = read(Path(skimage.data.__file__).parent / "chelsea.png")
        return explored(photo, "cat", choice), (photo, "cat")

    def changed(kept: tuple[np.ndarray, str] | None, choice: str) -> Any:
        return explored(*kept, choice) if kept else gr.skip()

    with gr.Blocks(title="deformscope", analytics_enabled=False, delete_cache=(600, 600), fill_width=True) as blocks:
        kept = gr.State(None, time_to_live=1800)
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            # Of any type: what is no photo gets an answer that says so.
            file = gr.File(label=f"Photo (at most {max_megabytes} MB)", type="filepath", height=140)
            with gr.Column():
                choice = gr.Dropdown(list(shown), value=next(iter(shown)), label="Detector", interactive=True)
                button = gr.Button("Show an example")
        view = gr.HTML(label="Explorer", padding=False)
        file.upload(dropped, [file, choice], [view, kept, file], api_visibility="private")
        button.click(example, [choice], [view, kept], api_visibility="private")
        choice.change(changed, [kept, choice], view, api_visibility="private")
    blocks.queue(default_concurrency_limit=1, max_size=8)

    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    outer.add_middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS))

    @outer.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await answer(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    @outer.get("/page/{key}")
    def shown_page(key: str) -> Response:
        text = pages.get(key)
        if text is None:
            return PlainTextResponse("This page is no longer kept; drop the photo again.", status_code=404)
        return HTMLResponse(text, headers={"Content-Security-Policy": "frame-ancestors 'self'"})

    gr.mount_gradio_app(
        outer,
        blocks,
        path="/",
        server_name=LOOPBACK,
        show_error=False,
        max_file_size=f"{max_megabytes}mb",
        footer_links=[],
        ssr_mode=False,
        # Fonts of the system: Gradio's usual ones come from the network.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=STYLE,
    )
    return outer


def run(detectors: Sequence[str] = ("packaged",), port: int = 7860) -> None:
    """Serve :func:`app` on 127.0.0.1 until interrupted; raises DeformscopeError when the port is taken."""
    import socket

    built = app(detectors)
    import uvicorn

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError):
            raise DeformscopeError(f"port={port}: in use on {LOOPBACK}; choose another one") from None
    print(f"http://{LOOPBACK}:{port}")
    uvicorn.run(built, host=LOOPBACK, port=port, log_level="warning")


def shown_names(detectors: Sequence[str]) -> dict[str, str]:
    """Detectors by the names that are shown: a file's without its folder, numbered where two are the same."""
    shown: dict[str, str] = {}
    for detector in detectors:
        before, source = ("hf:", detector[3:]) if detector.startswith("hf:") else ("", detector)
        name = before + Path(source).name if Path(source).expanduser().exists() else detector
        unique, count = name, 1
        while unique in shown:
            count += 1
            unique = f"{name} ({count})"
        shown[unique] = detector
    return shown


def without_folder(message: str, path: str) -> str:
    """An error's text with the file's name in place of its whole path."""
    path = path.removeprefix("hf:")
    return message.replace(path, Path(path).name).replace(str(Path(path)), Path(path).name)


def _own_folder() -> None:
    """Have Gradio put uploads into a folder of this process, which is removed when it exits, unless the user named one.

    Gradio's default is one folder for all processes and users of the machine.
    """
    if not os.environ.get(UPLOAD_FOLDER):
        folder = os.environ[UPLOAD_FOLDER] = tempfile.mkdtemp(prefix="deformscope-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _load(name: str) -> nn.Module:
    from .. import load

    return load(name)


def _alert(message: str) -> str:
    return f'<p role="alert" style="padding:1em">{html.escape(message)}</p>'


def _frame(key: str) -> str:
    return (
        f'<p><a href="/page/{key}" target="_blank" rel="noopener">Open on its own</a></p>'
        f'<iframe src="/page/{key}" title="deformscope explorer" '
        'style="width:100%;height:calc(100vh - 270px);min-height:640px;border:0;border-radius:8px"></iframe>'
    )
