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
    with pytest.raises(DeformscopeError) as refused:
        reading.read_pickle(path)
    assert "\n" not in str(refused.value)
    assert not sign.exists()


def test_only_arrays_and_dictionaries_are_known_to_the_pickle_reader():
    known = reading.ArrayUnpickler(io.BytesIO())
    for name in ("_reconstruct", "scalar"):
        mine = known.find_class("numpy.core.multiarray", name)
        assert mine == known.find_class("numpy._core.multiarray", name)
        assert mine.__module__ == reading.__name__  # no function of numpy's gets what is in a file
    assert known.find_class("collections", "OrderedDict") is OrderedDict
    assert known.find_class("numpy", "ndarray").__module__ == reading.__name__
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


def pickled(*operations):
    return b"\x80\x02" + b"".join(operations) + b"."


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
FLOATS = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def state(shape, kind, data):
    return b"(K\x01" + shape + kind + b"\x89" + data + b"tb"


@pytest.mark.parametrize(
    "operations",
    [
        (ARRAY, state(b"K\x02\x85", FLOATS, b"U\x04abcd")),  # fewer bytes than floats
        (ARRAY, state(b"K\x01\x85", FLOATS, b"U\x08abcdefgh")),
        (ARRAY, state(b"J\xff\xff\xff\xff\x85", FLOATS, b"U\x04abcd")),
        (ARRAY, state(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", FLOATS, b"U\x04abcd")),
        (ARRAY, state(b"U\x01x", FLOATS, b"U\x04abcd")),
        (ARRAY, state(b"K\x01\x85", b"K\x07", b"U\x04abcd")),
        (ARRAY, state(b"K\x01\x85", FLOATS, b"K\x05")),
        (ARRAY, b"K\x05b"),
        (ARRAY, b"Nb"),
        (b"cnumpy\ndtype\nU\x02f4\x85RK\x05b",),
        (b"cnumpy\ndtype\nU\x08f9999999\x85R", b"0", ARRAY),
        (b"cnumpy.core.multiarray\nscalar\nNN\x86R",),
        (b"cnumpy.core.numeric\n_frombuffer\n(NNNNtR",),
    ],
)
def test_arrays_that_do_not_fit_together_are_one_line_and_no_crash(tmp_path, operations):
    """States of arrays and types as a damaged file gives them, with which numpy's own unpickling may crash."""
    path = tmp_path / "a.pkl"
    path.write_bytes(pickled(b"}U\x05model}U\x01a", *operations, b"ss"))
    with pytest.raises(DeformscopeError) as error:
        load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_memo_entries_of_any_number_cost_no_memory(tmp_path):
    assert issubclass(reading.ArrayUnpickler, pickle._Unpickler)  # first, since the other asks for 32 GB
    path = tmp_path / "a.pkl"
    path.write_bytes(pickled(b"}", b"r\xff\xff\xff\x7f", b"U\x01aK\x01s"))
    assert reading.read_pickle(path) == {"a": 1}


def test_a_dictionary_that_holds_itself_ends(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickled(b"}q\x00U\x01ah\x00s"))
    content = reading.read_pickle(path)
    assert content["a"] is content


def test_a_zip_that_says_it_has_volumes_is_one_line(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "a.pth")
    data = bytearray((tmp_path / "a.pth").read_bytes())
    locator = data.rfind(b"PK\x06\x07")
    assert locator > 0
    data[locator + 16] = 7  # volumes in all
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(DeformscopeError) as error:
        load(tmp_path / "a.pth")
    assert "\n" not in str(error.value)


def test_what_a_safetensors_file_says_is_quoted_in_one_line(tmp_path):
    head = b'{"a":{"dtype":"a\\nb","shape":[],"data_offsets":[0,0]}}'
    (tmp_path / "a.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(DeformscopeError, match="no readable safetensors file") as error:
        load(tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)
