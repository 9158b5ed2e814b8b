"""Photos are resized to the grey level as OpenCV does it, and to the sides that a framework allows."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from deformscope.detectors.preparation import resize_opencv, target_size
from deformscope.detectors.rcnn.config import DETECTRON2, MMDETECTION

SIDE = st.integers(1, 90)


@settings(max_examples=60, deadline=None)
@given(SIDE, SIDE, st.integers(1, 150), st.integers(1, 150), st.integers(0, 2**32 - 1))
def test_resizing_is_opencvs_to_the_bit(h, w, height, width, seed):
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    expected = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(resize_opencv(image, (height, width)), expected)


@pytest.mark.parametrize(("size", "target"), [((48, 64), (80, 107)), ((60, 80), (30, 40)), ((1, 7), (5, 3))])
def test_resizing_stays_within_a_grey_level_of_interpolation_by_the_letter(size, target):
    """Without OpenCV at hand: bilinear in float64, half-pixel centres, clamped at the border."""
    image = np.random.default_rng(4).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = resize_opencv(image, target)
    for y in range(target[0]):
        for x in range(target[1]):
            places = [
                min(max((i + 0.5) * n / m - 0.5, 0.0), n - 1.0) for i, n, m in zip((y, x), size, target, strict=True)
            ]
            (top, left), (dy, dx) = [int(p) for p in places], [p % 1 for p in places]
            bottom, right = min(top + 1, size[0] - 1), min(left + 1, size[1] - 1)
            upper = image[top, left] * (1 - dx) + image[top, right] * dx
            lower = image[bottom, left] * (1 - dx) + image[bottom, right] * dx
            assert np.abs(upper * (1 - dy) + lower * dy - found[y, x]).max() <= 1.0


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_no_side_is_longer_than_allowed_and_one_reaches_its_limit(h, w):
    for how in (MMDETECTION.preparation, DETECTRON2.preparation):
        size = target_size((h, w), how)
        assert min(size) <= 800 and max(size) <= 1333
        assert min(size) == 800 or max(size) == 1333


@pytest.mark.parametrize("size", [(64, 33), (700, 90), (1100, 41)])
def test_resizing_in_strips_is_pillows_to_the_bit(size):
    from deformscope.detectors.preparation import resize_pillow

    photo = np.random.default_rng(2).integers(0, 255, (1100, 57, 3), dtype=np.uint8)
    whole = Image.fromarray(photo).resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize_pillow(photo, size), np.asarray(whole))
