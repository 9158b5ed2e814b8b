"""Read recipes from YAML files or, by name, from those that come with the package, with overrides."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import yaml

from ..errors import DeformscopeError
from ..from_dict import from_dict, merge, nested, suggest
from .recipe import Recipe

MOST_BYTES = 1 << 20


def read(recipe: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: a YAML file, or the name of one that comes with the package, such as ``shapes``.

    ``overrides`` are ``key.subkey=value``, with the value in YAML; of two for one key the later counts. ``base:
    OTHER.yaml`` in a file takes what the file does not set from another one in the same folder. Raises
    DeformscopeError, which names the key, its value and what was expected.
    """
    values = _values(_locate(recipe), depth=0)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise DeformscopeError(f"{override!r}: expected an override such as optimiser.lr=0.01")
        values = merge(values, nested(key, _parsed(text, override)))
    return from_dict(Recipe, values)


def packaged_recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    with as_file(files("deformscope.training") / "recipes") as folder:
        return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def _locate(recipe: str | os.PathLike[str]) -> Path:
    text = os.fspath(recipe)
    path = Path(text).expanduser()
    if path.is_file():
        return path
    if text in packaged_recipes():
        with as_file(files("deformscope.training") / "recipes" / f"{text}.yaml") as inside:
            return inside
    raise DeformscopeError(f"recipe={text!r}: no such file; for a recipe by name {suggest(text, packaged_recipes())}")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, where 010 is ten, 1:30 and `no` are texts; without aliases, with which a small file can
    expand without bounds, and without keys that stand twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (none of YAML 1.1's)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"the key {twice!r} stands twice; keep one")
        return super().construct_mapping(node, deep)

    def construct_whole(self, node: Any) -> int:
        return int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10)


CORE = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
"""Of each of YAML 1.2's types (10.3.2), how its values are written and with what they begin."""
for _name, (_written, _first) in CORE.items():
    _starts = ["" if sign == "\0" else sign for sign in _first]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_written})$"), _starts)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)


def _values(path: Path, depth: int) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise DeformscopeError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if len(content) > MOST_BYTES:
        raise DeformscopeError(f"{path}: larger than {MOST_BYTES >> 20} MiB; expected a recipe")
    values = _parsed(content, str(path))
    if not isinstance(values, dict):
        raise DeformscopeError(f"{path}: expected keys and values, such as `name: mine`")
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str) or depth > 4:
        raise DeformscopeError(f"{path}: base: {base!r}; expected another recipe's file, at most four deep")
    return merge(_values(path.parent / base, depth + 1), values)


def _parsed(content: str | bytes, source: str) -> Any:
    try:
        return yaml.load(content, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DeformscopeError(f"{source}: no valid YAML ({' '.join(str(error).split())}); correct it") from None
