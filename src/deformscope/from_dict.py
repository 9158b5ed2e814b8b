"""Dataclasses from nested dictionaries, as YAML and JSON give them, with every key and the type of every value checked.

Errors name the path of the key, the value and what was expected; for an unknown key, the most similar known one.
"""

from __future__ import annotations

import difflib
import math
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import DeformscopeError

Record = TypeVar("Record")


def from_dict(record: type[Record], values: Any, path: str = "") -> Record:
    """Build the dataclass ``record``, and the dataclasses in its fields, from nested dictionaries.

    Lists become tuples; where a float is expected, ints and texts such as "1e-3" become floats. ``path`` is put before
    the keys in errors. Raises DeformscopeError for unknown or missing keys and for values of another type.
    """
    if not isinstance(values, dict):
        raise DeformscopeError(f"{path or record.__name__.lower()}: {values!r}; expected keys and values")
    hints = get_type_hints(record)
    known = {field.name: field for field in fields(record)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise DeformscopeError(f"{_join(path, key)}: no such key; {suggest(str(key), list(known))}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise DeformscopeError(f"{_join(path, name)}: missing; expected {_describe(hints[name])}")
    return record(**{key: _convert(hints[key], value, _join(path, key)) for key, value in values.items()})


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``base`` with its values replaced by those of ``over``; nested dictionaries are merged."""
    both = dict(base)
    for key, value in over.items():
        old = both.get(key)
        both[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def nested(path: str, value: Any) -> dict[str, Any]:
    """``nested("a.b", 1)`` is ``{"a": {"b": 1}}``."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def _convert(kind: Any, value: Any, path: str) -> Any:
    origin, choices = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return from_dict(kind, value, path)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        return _convert(next(choice for choice in choices if choice is not type(None)), value, path)
    if origin is Literal:
        # YAML reads 32 as a number where the text "32" is meant.
        for choice in choices:
            if value == choice or (type(value) is int and str(value) == choice):
                return choice
        raise DeformscopeError(f"{path}: {value!r}; {suggest(str(value), list(choices))}")
    if origin is tuple and isinstance(value, (list, tuple)):
        if len(choices) == 2 and choices[1] is Ellipsis:
            return tuple(_convert(choices[0], one, f"{path}[{i}]") for i, one in enumerate(value))
        if len(choices) == len(value):
            return tuple(
                _convert(one, v, f"{path}[{i}]") for i, (one, v) in enumerate(zip(choices, value, strict=True))
            )
    if kind is float and not isinstance(value, bool):
        # YAML 1.1 reads 1e-3 as text, because it has no point.
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number):
            return number
    elif kind in (int, str, bool) and type(value) is kind:
        return value
    raise DeformscopeError(f"{path}: {value!r}; expected {_describe(kind)}")


def _describe(kind: Any) -> str:
    origin, choices = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if choice is type(None) else _describe(choice) for choice in choices)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, choices))
    if origin is tuple:
        inner = "any number" if choices[-1] is Ellipsis else str(len(choices))
        return f"a list of {inner}, each {_describe(choices[0])}"
    if is_dataclass(kind):
        return "keys and values"
    return {float: "a number", int: "a whole number", str: "text", bool: "true or false"}.get(kind, str(kind))


def suggest(name: str, known: list[Any]) -> str:
    near = difflib.get_close_matches(name, [str(one) for one in known], n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(map(repr, known))}"


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
