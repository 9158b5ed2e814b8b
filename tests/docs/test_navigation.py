"""Every page has a place in the site's navigation, every link leads somewhere, every public name is described."""

import fnmatch
import importlib
import re
from pathlib import Path

import pytest
from pages import DOCS, ROOT, anchors, blocks, links, markdown_pages, name_of

import deformscope

PUBLIC = ("draw", "explorer", "fields", "ops", "score", "training")
"""Packages whose own names are public."""


def places() -> list[str]:
    """The entries of the navigation: pages without their ending, or patterns."""
    entries = []
    for block in blocks(DOCS / "index.md"):
        if block.language == "{toctree}":
            lines = [line for line in block.code.splitlines() if line and not line.startswith(":")]
            entries += [re.sub(r"^.* <(.+)>$", r"\1", line) for line in lines]
    return entries


def test_every_page_has_a_place_in_the_navigation():
    pages = {
        path.relative_to(DOCS).with_suffix("").as_posix()
        for ending in ("*.md", "*.ipynb")
        for path in DOCS.rglob(ending)
        if "generated" not in path.parts
    }
    lost = [
        page for page in sorted(pages - {"index"}) if not any(fnmatch.fnmatchcase(page, entry) for entry in places())
    ]
    assert not lost, f"no place in the navigation: {lost}; add each to the fitting toctree of docs/index.md"
    gone = [one for one in places() if "*" not in one and not one.startswith("generated/") and one not in pages]
    assert not gone, f"docs/index.md names pages that are not there: {gone}"


@pytest.mark.parametrize("page", [*markdown_pages(), DOCS / "llms.txt"], ids=name_of)
def test_links_lead_to_files_and_headings_that_are_there(page: Path):
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        built = path.name == "explorer-page.html"  # made with the site
        assert built or path.exists(), f"{name_of(page)}: {link}: no such file"
        assert path.resolve().is_relative_to(ROOT), f"{name_of(page)}: {link}: outside of the repository"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{name_of(page)}: {link}: no such heading; there are {anchors(path)}"


def test_every_public_name_is_in_the_api_reference():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    described = set(re.findall(r"^\.\. auto\w+:: deformscope\.(\S+)$", text, re.MULTILINE))
    wanted = set(deformscope.__all__) - {"draw"}
    for room in PUBLIC:
        wanted |= public_names(room)
    same = {name for name in wanted if name.rsplit(".", 1)[-1] in deformscope.__all__}  # at the top too
    missing = sorted((wanted - same) - described) + sorted(
        name for name in same if name not in described and name.rsplit(".", 1)[-1] not in described
    )
    assert not missing, f"public, and on no page of docs/api: {missing}"


def public_names(room: str) -> set[str]:
    """What a package's __init__ hands on under its own name."""
    source = Path(importlib.import_module(f"deformscope.{room}").__file__ or "").read_text(encoding="utf-8")
    return {f"{room}.{name}" for name in re.findall(r"\b(\w+) as \1\b", source)}


def test_the_names_of_the_api_reference_have_a_docstring():
    for path in (DOCS / "api").glob("*.md"):
        for name in re.findall(r"^\.\. auto\w+:: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert found(name).__doc__, f"{name_of(path)}: {name} has no docstring"


def found(name: str) -> object:
    """The object with this dotted name, the deepest module of it imported."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    raise AssertionError(name)
