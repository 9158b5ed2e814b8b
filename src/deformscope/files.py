"""Files of tensors: safetensors that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def write(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write contiguous tensors and what is to be known of them, beside ``path`` first and then in its place."""
    from safetensors.torch import save

    beside = path.with_name(path.name + ".tmp")
    try:
        # The library's own files can be read by their owner alone, whatever the user's umask says.
        beside.write_bytes(save(dict(tensors), dict(metadata)))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
