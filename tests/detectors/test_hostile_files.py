"""Files that would run something are refused, and nothing runs."""

import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from deformscope.detectors.checkpoints import unpickle as reading
from deformscope.detectors.zoo import load
from deformscope.errors import DeformscopeError


class Runs:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def write_pickle(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))


def write_zip(path, content):
    torch.save(content, path)


def write_legacy(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)


WRITERS = [write_pickle, write_zip, write_legacy]


@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__)
@pytest.mark.parametrize("place", ["state_dict", "model", "meta", "itself"])
def test_a_file_that_would_run_something_is_refused_and_runs_nothing(tmp_path, write, place):
    sign = tmp_path / "it ran"
    for index, attack in enumerate(
        [Runs(os.system, f"touch '{sign}'"), Runs(exec, f"open({str(sign)!r}, 'w')"), Runs(os.makedirs, str(sign))]
    ):
        path = tmp_path / f"{index}.pth"
        write(path, attack if place == "itself" else {"state_dict": {}, place: attack})
        with pytest.raises(DeformscopeError, match="refused") as error:
            load(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert not sign.exists()


GADGETS = {
    "a getattr chain": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(S'touch {sign}'\ntR.",
    "an importing codec": b"c_codecs\nencode\n(S'x'\nS'antigravity'\ntR.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
    "numpy's own loader": b"cnumpy\nload\n(S'{sign}'\ntR.",
    "a persistent id": b"S'x'\nQ.",
    "an extension code": b"\x80\x02\x82\x01.",
}


@pytest.mark.parametrize("gadget", GADGETS, ids=str)
def test_tricks_with_pickles_own_opcodes_run_nothing(tmp_path, gadget):
    sign = tmp_path / "ran"
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02" + GADGETS[gadget].replace(b"{sign}", str(sign).encode()))
    try:
        reading.read_pickle(path)
    except DeformscopeError as error:
        assert "\n" not in str(error)
    else:
        raise AssertionError("a hostile pickle was read")
    assert not sign.exists()


def test_only_arrays_and_dictionaries_are_known_to_the_pickle_reader():
    known = reading._ArrayUnpickler(io.BytesIO())
    for name in ("_reconstruct", "scalar"):
        assert known.find_class("numpy.core.multiarray", name) == known.find_class("numpy._core.multiarray", name)
    assert known.find_class("collections", "OrderedDict") is OrderedDict
    assert known.find_class("numpy", "ndarray") is np.ndarray
    for module, name in [("numpy", "load"), ("builtins", "getattr"), ("torch", "load"), ("collections", "deque")]:
        with pytest.raises(pickle.UnpicklingError):
            known.find_class(module, name)


def test_arrays_of_objects_and_strings_are_no_weights(tmp_path):
    for value in (np.array([None, 1]), np.array(["a"]), "text", 3):
        write_pickle(tmp_path / "a.pkl", {"model": {"roi_heads.x": value}})
        with pytest.raises(DeformscopeError, match="expected a tensor or an array"):
            load(tmp_path / "a.pkl")


def test_weights_of_another_kind_of_number_are_refused(tmp_path, thin, random_rcnn):
    from deformscope.detectors.checkpoints.mmdet import to_theirs

    state = {to_theirs(key): value for key, value in random_rcnn(thin()).state_dict().items()}
    state["neck.fpn_convs.0.conv.bias"] = state["neck.fpn_convs.0.conv.bias"].long()
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(DeformscopeError, match=r"fpn_convs\.0\.conv\.bias is of type torch\.int64"):
        load(tmp_path / "a.pth")
