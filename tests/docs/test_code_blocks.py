"""The code in README.md and docs/ runs as it stands, and its commands exist with these options.

Blocks of a page run one after the other and share their names. A block that cannot run here says why in a comment above
it: ``<!-- not run: needs a GPU -->``.
"""

import ast
import re
import shlex
from pathlib import Path

import pytest
import stage
from cyclopts import CycloptsError
from pages import DOCS, ROOT, Block, blocks, markdown_pages, name_of

import deformscope.cli
from deformscope.cli.app import app

PAGES = [page for page in markdown_pages() if page.name != "CHANGELOG.md"]
LANGUAGES = {"python", "sh", "yaml", "text", "bibtex", ""}


def of_language(page: Path, language: str) -> list[Block]:
    return [block for block in blocks(page) if block.language == language and not block.before.startswith("not run:")]


def used(block: Block) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(block.code)) if isinstance(node, ast.Name)}


@pytest.mark.parametrize("page", [page for page in PAGES if of_language(page, "python")], ids=name_of)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    stage.folder(tmp_path)
    chosen = of_language(page, "python")
    if any(stage.CHECKPOINT in block.code for block in chosen):
        stage.checkpoint(tmp_path / stage.CHECKPOINT)
    given = stage.NAMES | stage.ON_PAGES.get(name_of(page), {})
    names: dict[str, object] = {"__name__": "__main__"}
    for block in chosen:
        for name in (used(block) & given.keys()) - names.keys():
            names[name] = given[name]()
        # Empty lines above, so that a traceback tells the line of the page.
        exec(compile("\n" * block.line + block.code, str(page), "exec"), names)


def test_every_picture_of_the_gallery_is_made_by_the_code_above_it():
    """That the code leaves these files: ``make pictures`` takes them from there."""
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    code = ""
    for block, picture in re.findall(r"```python\n(.*?)```|!\[[^]]*\]\(figures/([\w-]+\.png)\)", text, re.DOTALL):
        code = block or code
        if picture and picture != "explorer-dark.png":  # a screenshot of the page that the code writes
            assert f'"{picture}"' in code, f"docs/gallery.md: {picture} is not made by the code above it"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_its_language(page: Path):
    for block in blocks(page):
        told = block.language in LANGUAGES or block.language.startswith("{")
        assert told, f"{name_of(page)}:{block.line}: language {block.language!r}; expected one of {LANGUAGES}"


def commands(block: Block) -> list[list[str]]:
    """Its command lines, in words, without comments and prompts."""
    text = block.code.replace("\\\n", " ")
    parts = [part for line in text.splitlines() for part in re.split(r"&&|;|\|", re.sub(r"(^|\s)#.*", "", line))]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


@pytest.mark.parametrize("page", [page for page in PAGES if of_language(page, "sh")], ids=name_of)
def test_the_commands_of_a_page_exist_with_these_options(page: Path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for block in of_language(page, "sh"):
        for words in commands(block):
            where = f"{name_of(page)}:{block.line}: {shlex.join(words)}"
            if words[0] == "make":
                assert words[1] in targets, where
            scripts = [word for word in words if re.fullmatch(r"(tools|benchmarks)/\w+\.py", word)]
            assert all((ROOT / script).is_file() for script in scripts), where
            tokens = arguments(words)
            if tokens is not None:
                try:
                    app.parse_args(tokens, exit_on_error=False, print_error=False)
                except CycloptsError as error:
                    raise AssertionError(f"{where}: {error}") from None


def arguments(words: list[str]) -> list[str] | None:
    """What a command line gives to deformscope; None if it does not call it."""
    for name in ("deformscope", "deformscope.cli", ".venv/bin/deformscope"):
        if name in words:
            tokens = words[words.index(name) + 1 :]
            return [re.sub(r"^cuda.*", "cpu", token) for token in tokens] if "install" not in words else None
    return None


def test_an_unknown_option_in_a_page_is_found():
    assert deformscope.cli.app is app
    with pytest.raises(CycloptsError, match="--vieww"):
        app.parse_args(["figures", "photo.jpg", "--vieww", "figure2"], exit_on_error=False, print_error=False)
    assert arguments(shlex.split("pip install 'deformscope[train]'")) is None
    code = "# it's\ndeformscope layers a.jpg  # a table\nmake test && deformscope figures b.jpg \\\n  --out c\n"
    block = Block("sh", code, 1, "")
    assert commands(block) == [
        ["deformscope", "layers", "a.jpg"],
        ["make", "test"],
        ["deformscope", "figures", "b.jpg", "--out", "c"],
    ]
