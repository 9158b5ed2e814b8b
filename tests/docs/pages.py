"""The documentation's pages, for the tests: where they are, their links, headings and code."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ELSEWHERE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/README.md")


def markdown_pages() -> list[Path]:
    found = [path for path in DOCS.rglob("*.md") if "generated" not in path.parts]
    cards = (ROOT / "src/deformscope/weights").glob("*.md")
    return sorted([*found, *(ROOT / name for name in ELSEWHERE), *cards])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tokens(path: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))


def links(path: Path) -> Iterator[str]:
    """The targets of links and pictures."""
    for token in tokens(path):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                yield str(target)


def anchors(path: Path) -> set[str]:
    """The names of the page's headings, as in an address."""
    found, parsed = set(), tokens(path)
    for opening, inline in pairwise(parsed):
        if opening.type == "heading_open":
            text = "".join(child.content for child in inline.children or ())
            kept = "".join(c for c in text.lower() if c in " -_" or unicodedata.category(c)[0] in "LN")
            found.add(kept.strip().replace(" ", "-"))
    return found


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    language: str
    code: str
    line: int
    """Of the page, from 1."""
    before: str
    """The comment right above it, which may say why it is not run."""


def blocks(path: Path) -> list[Block]:
    found, before = [], ""
    for token in tokens(path):
        if token.type == "fence":
            assert token.map is not None
            found.append(Block(token.info.strip(), token.content, token.map[0] + 1, before))
        comment = re.fullmatch(r"<!--\s*(.*?)\s*-->\s*", token.content, re.DOTALL)
        before = comment[1] if comment and token.type == "html_block" else ""
    return found
