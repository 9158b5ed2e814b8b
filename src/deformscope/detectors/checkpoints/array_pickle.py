"""Pickles of numpy arrays, as Detectron2 writes and Caffe2 wrote them, read without numpy's own unpickling.

numpy trusts the states that a pickle gives to its arrays and types: a damaged file makes it crash. So stand-ins take
the states, and arrays are made of their bytes once everything fits.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from typing import Any, BinaryIO

import numpy as np

KINDS = "fiub"
"""numpy's codes of floats, integers and truth values: all that weights are made of."""


def load(file: BinaryIO) -> Any:
    """The content of a pickle of dictionaries, plain values and arrays; raises what ``pickle`` raises.

    Text of Python 2 is taken as latin1. An array of anything but numbers becomes None.
    """
    content = ArrayUnpickler(file, encoding="latin1").load()
    todo, met = [content], set()
    while todo:  # not recursive: a dictionary may hold itself
        value = todo.pop()
        if isinstance(value, dict) and id(value) not in met:
            met.add(id(value))
            for key, inner in value.items():
                if isinstance(inner, _Array):
                    value[key] = inner.array
                else:
                    todo.append(inner)
    return content.array if isinstance(content, _Array) else content


_Unpickler: Any = pickle._Unpickler
"""Python's own: the one in C sets memory aside for memo entries up to any number that a file names."""


class ArrayUnpickler(_Unpickler):
    """Knows arrays and dictionaries and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for what numpy names in its pickles, wherever its versions keep it."""
        if module.replace("._core.", ".core.") in ("numpy.core.multiarray", "numpy.core.numeric"):
            module = "numpy.core"
        known = {
            ("numpy.core", "_reconstruct"): _Array,
            ("numpy.core", "scalar"): _Scalar,
            ("numpy.core", "_frombuffer"): _OfBuffer,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Type,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if (module, name) in known:
            return known[module, name]
        if (module, name) == ("_codecs", "encode"):

            def encode(text: str, encoding: str = "latin1") -> bytes:
                return text.encode("latin1")  # the one encoding that array pickles use; others would import modules

            return encode
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


class _Type:
    """Stands for ``numpy.dtype``."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def __call__(self) -> np.dtype | None:
        """The type itself; None for one that is not of numbers."""
        if not isinstance(self.code, str) or self.code[:1] not in tuple(KINDS) or not self.code[1:].isdecimal():
            return None
        return np.dtype(("<" if self.order not in ("<", ">") else self.order) + self.code)


class _Array:
    """Stands for an array, which comes as version, shape, type, whether columns go first, and bytes."""

    __slots__ = ("array",)

    def __init__(self, *_: Any) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        shape, kind, columns_first, data = state[-4:]
        self._fill(data, kind, shape, "F" if columns_first else "C")

    def _fill(self, data: Any, kind: Any, shape: Any, order: Any) -> None:
        if not isinstance(kind, _Type):
            raise pickle.UnpicklingError(f"an array of type {type(kind).__name__}")
        number = kind()
        if number is None:
            return
        if isinstance(data, str):  # of Python 2
            data = data.encode("latin1")
        sides = shape if isinstance(shape, tuple) else (shape,)
        if not all(type(side) is int and side >= 0 for side in sides) or len(sides) > 32:
            raise pickle.UnpicklingError(f"an array of shape {str(shape)[:50]}")
        if not isinstance(data, (bytes, bytearray)) or len(data) != math.prod(sides) * number.itemsize:
            raise pickle.UnpicklingError(f"an array of shape {str(shape)[:50]} with other bytes than that many")
        self.array = np.frombuffer(data, number).reshape(sides, order="F" if order == "F" else "C")


class _Scalar(_Array):
    """Stands for a number of numpy's."""

    __slots__ = ()

    def __init__(self, kind: Any = None, data: Any = b"") -> None:
        super().__init__()
        self._fill(data, kind, (), "C")


class _OfBuffer(_Array):
    """Stands for an array of protocol 5, in one piece with its bytes."""

    __slots__ = ()

    def __init__(self, data: Any = b"", kind: Any = None, shape: Any = (), order: Any = "C") -> None:
        super().__init__()
        self._fill(data, kind, shape, order)
