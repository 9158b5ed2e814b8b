"""A user's own network from the command line: ``python:package.module:factory``. This runs the user's code."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from torch import nn

from ...errors import DeformscopeError
from ..detector import Detector
from .adapted import adapt, told


def load(spec: str) -> Detector:
    """The detector that a factory makes: ``package.module:factory`` is imported and called without arguments.

    The module is looked for as Python does, and in the current folder. The factory returns a module, or what
    :func:`.adapted.adapt` made of one with ``prepare`` and ``decode``. Raises DeformscopeError, with the reason in one
    line, when it cannot be imported, fails, or returns something else.
    """
    shown = f"detector='python:{spec}'"
    module, colon, factory = spec.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *factory.split("."))):
        raise DeformscopeError(f"{shown}: expected python:package.module:factory")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # at the end: nothing that is installed is hidden by a file of that name
    try:
        found = import_module(module)
        for part in factory.split("."):
            found = getattr(found, part)
        if not callable(found):
            raise TypeError(f"{factory} is of type {type(found).__name__}, not a function")
        made = found()
    except Exception as error:  # whatever the user's code raises
        raise DeformscopeError(f"{shown}: {told(error)}") from error
    if isinstance(made, Detector):
        return made.eval()
    if not isinstance(made, nn.Module):
        raise DeformscopeError(
            f"{shown}: returned {type(made).__name__}; expected a torch.nn.Module, or what deformscope.adapt made"
        )
    return adapt(made, name=factory)
