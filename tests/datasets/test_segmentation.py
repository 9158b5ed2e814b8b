"""COCO's segmentations: malformed ones are refused before they reach a library that trusts them."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from deformscope.datasets.values import MalformedError, checked, decode, mask_library, run_lengths

SIZE = (4, 5)


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ({"size": [4, 5], "counts": [3, 99999999]}, "100000002 pixels: expected 20"),
        ({"size": [4, 5], "counts": "o0000000000000000000000"}, "expected 20|not COCO's code"),
        ({"size": [400000, 5], "counts": [3, 5]}, r"size \[400000, 5\]: expected \[4, 5\]"),
        ({"size": [5, 4], "counts": [3, 17]}, r"size \[5, 4\]: expected \[4, 5\]"),
        ({"size": [4, 5], "counts": "\x01\x02é"}, "not COCO's code"),
        ({"size": [4, 5], "counts": "T"}, "cut off"),
        ({"size": [4, 5], "counts": [3, -3, 20]}, "at least 0"),
        ({"size": [4, 5], "counts": [3, None, 17]}, "whole numbers"),
        ({"size": [4, 5], "counts": [3.5, 16.5]}, "whole numbers"),
        ({"size": [4, 5], "counts": [20]}, "no pixel"),
        ({"size": [4, 5], "counts": None}, "counts|run lengths None"),
        ({"size": [4, 5]}, "run lengths None"),
        ({"counts": [20]}, "size None"),
        ({"size": "4", "counts": [20]}, "size 4"),
        ([[1, 2, 3, 4]], "at least three corners"),
        ([1, 2, 3, 4, 5, 6], "each a list"),
        ([[1, 2, 3, 4, 5, 6, 7]], "7 numbers"),
        ([[1, 2, float("nan"), 4, 5, 6]], "expected numbers"),
        ([[1, 2, float("inf"), 4, 5, 6]], "expected numbers"),
        ([[1, 2, 10**400, 4, 5, 6]], "expected numbers"),
        ([[1, 2, True, 4, 5, 6]], "expected numbers"),
        ([[1, 2, [], 4, 5, 6]], "expected numbers"),
        ([["a"] * 6], "expected numbers"),
        ([[10, 1, 14, 1, 14, 3, 10, 3]], "outside the photo, 5×4"),
        ([[1, -9, 4, -9, 4, -1, 1, -1]], "outside the photo"),
        ("nonsense", "expected polygons or run lengths"),
        (7, "expected polygons or run lengths"),
        (True, "expected polygons or run lengths"),
    ],
)
def test_a_malformed_segmentation_is_named(segmentation, words):
    with pytest.raises(MalformedError, match=words) as raised:
        checked(segmentation, SIZE)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


@pytest.mark.parametrize("nothing", [None, [], {}, [[]]])
def test_no_segmentation_is_none(nothing):
    assert checked(nothing, SIZE) is None


def test_polygons_and_both_kinds_of_run_lengths_give_the_same_mask():
    expected = decode(checked([[1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0]], SIZE), SIZE)
    assert expected.sum() == 6
    packed = coco.encode(np.asfortranarray(expected.astype(np.uint8)))["counts"]
    changes = np.flatnonzero(np.diff(np.concatenate([[0], expected.T.ravel().astype(int), [2]])))
    counts = np.diff([0, *changes.tolist()]).tolist()
    for code in (packed, packed.decode(), counts, [str(run) for run in counts], [float(run) for run in counts]):
        given = {"size": ["4", 5.0], "counts": code}
        assert (decode(checked(given, SIZE), SIZE) == expected).all()


def test_polygons_without_area_beside_others_are_left_out():
    whole = [[1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0]]
    assert checked([[0, 0, 5, 4], *whole, [1, 1]], SIZE) == whole


def test_corners_far_beyond_the_photo_cost_neither_time_nor_memory():
    far = [[-1e12, -1e12, 1e12, -1e12, 1e12, 1e12, -1e12, 1e12]]
    near = checked(far, SIZE)  # as the libraries get it, for which a corner is a line of so many pixels
    assert max(abs(value) for value in near[0]) <= 2 * max(SIZE)
    assert decode(near, SIZE).all()


@given(arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 30))))
@settings(max_examples=200, deadline=None)
def test_masks_come_back_from_their_run_lengths(mask):
    code = run_lengths(mask)
    if mask.any():
        assert (decode(checked(code, mask.shape), mask.shape) == mask).all()
    else:
        with pytest.raises(MalformedError, match="no pixel"):
            checked(code, mask.shape)


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
@settings(max_examples=500, deadline=None)
def test_what_passes_is_read_by_the_library_as_we_read_it(text):
    """Anything that is let through has as many pixels as the library writes, and no more."""
    try:
        code = checked({"size": [6, 7], "counts": text}, (6, 7))
    except MalformedError:
        return
    assert coco.decode(code).shape == (6, 7)
    assert coco.encode(np.asfortranarray(coco.decode(code)))["size"] == [6, 7]


def test_either_library_will_do(monkeypatch):
    pytest.importorskip("faster_coco_eval")
    real = __import__

    def without_pycocotools(module, *rest, **more):
        if module.startswith("pycocotools"):
            raise ImportError(module)
        return real(module, *rest, **more)

    polygon = [[1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0]]
    expected = decode(polygon, SIZE)
    monkeypatch.setattr("builtins.__import__", without_pycocotools)
    assert "faster_coco_eval" in mask_library().__name__
    assert (decode(polygon, SIZE) == expected).all()
    assert (decode(checked(run_lengths(expected), SIZE), SIZE) == expected).all()
