"""Keys that recipes used before: in run folders they are still read, in a user's recipe they are an error."""

from __future__ import annotations

from typing import Any

from ...errors import DeformscopeError

KEYS = {
    "promise": "expected",
    "network.rois": "network.rois_per_image",
    "network.stacked": "network.deform_layers",
    "optimiser.clip": "optimiser.grad_clip_norm",
}
"""Former key to present key; both lie in the same mapping."""


def refuse(values: dict[str, Any]) -> None:
    """Raise DeformscopeError for a former key, naming the present one."""
    for former, present in KEYS.items():
        mapping, key = _find(values, former)
        if key in mapping:
            raise DeformscopeError(f"{former}: this key is now called {present}; rename it")


def translated(values: Any) -> Any:
    """``values`` with former keys replaced by the present ones."""
    if not isinstance(values, dict):
        return values
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for former, present in KEYS.items():
        mapping, key = _find(values, former)
        if key in mapping:
            mapping[present.rpartition(".")[2]] = mapping.pop(key)
    return values


def _find(values: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds the last key of ``path`` (empty where there is none), and that key."""
    *parents, key = path.split(".")
    mapping: Any = values
    for parent in parents:
        mapping = mapping.get(parent)
        if not isinstance(mapping, dict):
            return {}, key
    return mapping, key
