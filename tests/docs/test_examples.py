"""The examples of public docstrings run, and every public name has one."""

import ast
import dataclasses
import doctest
import inspect
import re
import sys
from pathlib import Path

import matplotlib.figure
import pytest
import stage
from pages import DOCS, name_of
from test_navigation import found

PAGES = sorted((DOCS / "api").glob("*.md"))
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
LIBRARIES = {"matplotlib": matplotlib, "dataclasses": dataclasses}


def described(page: Path) -> list[str]:
    return re.findall(r"^\.\. auto\w+:: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def home(value: object) -> dict[str, object]:
    """The names of the module in which an object is defined."""
    return vars(sys.modules[inspect.unwrap(value).__module__])  # type: ignore[arg-type, attr-defined]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_examples_of_a_page_of_the_api_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    stage.folder(tmp_path)
    stage.checkpoint(tmp_path / stage.CHECKPOINT)
    given = stage.NAMES | stage.ON_PAGES.get(name_of(page), {})
    made: dict[str, object] = dict(LIBRARIES)
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    said: list[str] = []
    for name in described(page):
        value = found(name)
        for test in doctest.DocTestFinder().find(value, name, globs={}):
            code = "".join(example.source for example in test.examples)
            names = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
            for one in (names & given.keys()) - made.keys():
                made[one] = given[one]()
            test.globs = home(value) | {one: made[one] for one in names & made.keys()}
            runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_public_name_has_an_example(page: Path):
    without = [name for name in described(page) if ">>>" not in (inspect.getdoc(found(name)) or "")]
    assert not without, f"{name_of(page)}: no example in the docstrings of {without}"
