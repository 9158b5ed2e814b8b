"""One HTML file that holds photos, fields and the program to look at them: no network, no build step."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..analysis import Analysis
from ..attribution.explanation import Explanation
from ..errors import DeformscopeError
from ..fields.segments import Segments
from ..files import write_text
from .payload import THUMBNAIL_PX, data_uri, grown, photo_record, script_text, titles_of

MODULES = (
    "dom",
    "colors",
    "field",
    "paths",
    "pens",
    "queries",
    "payload",
    "state",
    "maps",
    "views",
    "whys",
    "marks",
    "stage",
    "numbers",
    "places",
    "inputs",
    "kernel",
    "layerlist",
    "threshold",
    "panel",
    "keyboard",
    "save",
    "layers",
    "legend",
    "help",
)
"""The page's modules, each before those that import it; ``page.js``, which starts everything, comes last."""


def page(
    analyses: Sequence[Analysis],
    titles: Sequence[str] = (),
    *,
    segments: Sequence[Mapping[str, Segments]] | None = None,
    explanations: Sequence[Mapping[int, Explanation]] | None = None,
    heading: str = "",
) -> str:
    """The text of a self-contained HTML page in which the ``analyses`` can be explored, one photo each.

    ``titles`` name the photos (default: numbers). ``segments`` gives for each photo the segments by layer name, where
    they are known already (``{}``: none); by default they are grown from the fields. ``explanations`` gives for each
    photo what :func:`deformscope.explain` says of some of its detections, by number. Nothing in the page refers to
    another file or address, and its Content-Security-Policy forbids it to.
    Raises DeformscopeError when there is nothing to show or the counts differ.

    Example:
        >>> text = page([ds.analyse(detector, "photo.jpg")], ["a cat"], segments=[{}])
        >>> "a cat" in text
        True
    """
    if not analyses:
        raise DeformscopeError(
            "analyses=[]: expected at least one; make them with deformscope.analyse(detector, photo)"
        )
    names = titles_of(analyses, titles)
    if segments is not None and len(segments) != len(analyses):
        raise DeformscopeError(f"segments: {len(segments)} given for {len(analyses)} photos; expected one per photo")
    if explanations is not None and len(explanations) != len(analyses):
        raise DeformscopeError(
            f"explanations: {len(explanations)} given for {len(analyses)} photos; expected one mapping per photo"
        )
    index = {
        "photos": [
            {"title": name, "thumbnail": data_uri(one.photo, THUMBNAIL_PX, 80) if len(analyses) > 1 else ""}
            for one, name in zip(analyses, names, strict=True)
        ]
    }
    records = [
        photo_record(
            one,
            name,
            grown(one.fields) if segments is None else segments[number],
            None if explanations is None else explanations[number],
        )
        for number, (one, name) in enumerate(zip(analyses, names, strict=True))
    ]
    payload = [_data("index", script_text(index))]
    payload += [_data(f"photo-{number}", script_text(record)) for number, record in enumerate(records)]
    style, script = _asset("page.css"), bundle()
    return _filled(
        _asset("page.html"),
        {
            "policy": policy(style, script),
            "title": html.escape(_written(heading or _heading(names))),
            "version": html.escape(_version()),
            "style": style,
            "payload": "\n".join(payload),
            "script": script,
        },
    )


def write(path: Path | str, analyses: Sequence[Analysis], titles: Sequence[str] = (), **settings: Any) -> Path:
    """Write :func:`page` to a file, which appears whole or not at all; returns its path.

    Example:
        >>> write("page.html", [ds.analyse(detector, "photo.jpg")], ["a cat"]).name
        'page.html'
    """
    return write_text(path, page(analyses, titles, **settings))


def policy(style: str, script: str) -> str:
    """The page's Content-Security-Policy: its own style and script by hash, pictures it holds, and nothing else."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
        ]
    )


def bundle() -> str:
    """The page's ES modules as one, in one scope: without their imports of each other and the word ``export``."""
    parts = []
    for name in (*MODULES, "page"):
        text = _asset(f"{name}.js")
        text = re.sub(r'^import \{[^}]*\} from "\./\w+\.js";\n', "", text, flags=re.MULTILINE)
        parts.append(re.sub(r"^export (?=(?:async )?(?:function|const|class)\b)", "", text, flags=re.MULTILINE))
    return "\n".join(parts)


def _asset(name: str) -> str:
    # Browsers hash the text after turning every line end into \n.
    text = (files("deformscope.explorer") / name).read_text(encoding="utf-8").replace("\r\n", "\n")
    if not name.endswith(".html") and re.search("<!--|</?script|</style", text):
        raise AssertionError(f"{name}: would end its own tag")
    return text


def _filled(template: str, parts: Mapping[str, str]) -> str:
    # In one pass, so that braces inside a part are never taken for a place to fill.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _data(name: str, text: str) -> str:
    return f'<script type="application/json" id="{name}">{text}</script>'


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _heading(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{rest} · deformscope"


def _written(text: str) -> str:
    """Text as UTF-8 can hold it: a file's name need not be UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _version() -> str:
    from .. import __version__

    return __version__
