"""Read tensors from pickled files without running their code.

torch's weights-only unpickler reads torch files, :class:`ArrayUnpickler` Detectron2's pickles. Training records in
MMDetection's files (histories, configuration objects) are replaced by empty stand-ins; a file with anything else that
is not a tensor or plain value is refused.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ...errors import DeformscopeError

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of torch files written before version 1.6, such as MMDetection's published ones."""
HARMLESS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.config.config.Config",
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.Config",
    "mmcv.utils.config.ConfigDict",
    "addict.addict.Dict",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.dtypes.Float32DType",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Int32DType",
    "numpy.dtypes.Int64DType",
    "_codecs.encode",
    "builtins.getattr",
    "__builtin__.getattr",
    "datetime.datetime",
    "datetime.date",
)
"""Names of training records in MMDetection's files. They are not imported but replaced by empty stand-ins."""


def kind(path: Path) -> str:
    """The format of a file by its first bytes: ``torch``, ``pickle`` or ``safetensors``. Raises DeformscopeError for
    others."""
    if not path.is_file():
        raise DeformscopeError(f"{path}: no such file; give a checkpoint file or one of `deformscope detectors`")
    try:
        with path.open("rb") as file:
            start = file.read(len(LEGACY_MAGIC))
    except OSError as error:
        raise DeformscopeError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if start == LEGACY_MAGIC or _is_zip(path):
        return "torch"
    # It begins with the length of the header, whose lowest byte may equal a pickle's first byte.
    if start[4:9] == b"\0\0\0\0{":
        return "safetensors"
    if start[:1] == b"\x80":
        return "pickle"
    raise DeformscopeError(
        f"{path}: no checkpoint; expected a file of torch (.pth), Detectron2 (.pkl) or safetensors, whole and unpacked"
    )


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # its end says that it has several volumes
        return False


def read_torch(path: Path) -> dict[str, Any]:
    """The dictionary in a torch file, on the CPU; tensors of zip files stay on disk until they are used."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([_stand_in(name) for name in HARMLESS])
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from None
    except Exception as error:  # torch's reader fails in as many ways as there are opcodes
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DeformscopeError(f"{path}: damaged or cut off ({reason}); get the file again") from None
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
    return _dictionary(path, content)


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a plain pickle of numpy arrays (latin1, as Detectron2 writes and Caffe2 wrote them)."""
    try:
        with path.open("rb") as file:
            content = load_arrays(file)
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from None
    except MemoryError:
        raise DeformscopeError(f"{path}: asks for more memory than there is; get the file again") from None
    except Exception as error:  # broken pickles raise as many kinds of errors as there are opcodes
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DeformscopeError(f"{path}: damaged or cut off ({reason}); get the file again") from None
    return _dictionary(path, content)


def tensors(path: Path, state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a state dictionary: arrays without a copy, half precision widened. Empties ``state``."""
    widened = {}
    for key in list(state):
        value = state.pop(key)
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.isnative:
            value = torch.from_numpy(value if value.flags.writeable else value.copy())
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise DeformscopeError(f"{path}: {key!r} is of type {type(value).__name__}; expected a tensor or an array")
        widened[key] = value.float() if value.is_floating_point() and value.dtype != torch.float32 else value
    return widened


class _StandIn(dict):
    """A stand-in for a training record, which ignores its content."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_in(name: str) -> type:
    module, _, last = name.rpartition(".")
    return type(last, (_StandIn,), {"__module__": module, "__qualname__": last})


def _refusal(path: Path, reason: str) -> DeformscopeError:
    named = re.search(r"GLOBAL ([\w.]+)", reason)
    if named:
        return DeformscopeError(
            f"{path}: refused, it would run {named[1]} on loading; a checkpoint holds tensors and plain values only: "
            "save its state_dict alone"
        )
    return DeformscopeError(f"{path}: no pickle of tensors and plain values ({reason.splitlines()[0][:200]})")


def _dictionary(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise DeformscopeError(f"{path}: holds a {type(content).__name__}; expected a dictionary with a state_dict")
    return content


NUMBERS = "fiub"
"""numpy's codes of floats, integers and truth values: all that weights are made of."""


def load_arrays(file: BinaryIO) -> Any:
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
        if not isinstance(self.code, str) or self.code[:1] not in tuple(NUMBERS) or not self.code[1:].isdecimal():
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
