"""Read the configuration in MMDetection's checkpoints, which is Python, as plain values without running it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

LONGEST = 1_000_000
"""Characters; longer texts are not parsed."""


def parse(text: Any) -> dict[str, Any]:
    """The top-level assignments of a configuration: ``dict(...)`` calls, lists and literals; others are left out.

    Tuples become lists. Returns nothing for a text that is not such a configuration.
    """
    if not isinstance(text, str) or len(text) > LONGEST:
        return {}
    try:
        body = ast.parse(text).body
        return {
            target.id: _value(statement.value)
            for statement in body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def value_at(values: Mapping[str, Any], *place: str) -> Any:
    """The value under nested names, or None."""
    current: Any = values
    for name in place:
        if not isinstance(current, Mapping):
            return None
        current = current.get(name)
    return current


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        number = node.operand.value
        return -number if isinstance(number, (int, float)) else None
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {key.value: _value(item) for key, item in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
    return None
