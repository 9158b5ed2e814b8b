"""Any photo comes in upright, in RGB; whatever is none gets one clear line."""

import numpy as np
import pytest
import torch
from PIL import Image

from deformscope import DeformscopeError
from deformscope.photo import find, read


@pytest.fixture
def ramp():
    """A photo whose every row and column differ, 40 high and 60 wide."""
    y, x = np.mgrid[:40, :60]
    return np.stack([4 * y, 4 * x, 2 * y + x], axis=-1).astype(np.uint8)


def test_path_image_array_and_tensor_give_the_same(ramp, tmp_path):
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    kinds = [
        tmp_path / "ramp.png",
        str(tmp_path / "ramp.png"),
        Image.fromarray(ramp),
        ramp,
        torch.from_numpy(ramp).permute(2, 0, 1),
        torch.from_numpy(ramp).permute(2, 0, 1) / 255,
    ]
    for kind in kinds:
        array = read(kind)
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, ramp)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied(orientation, ramp, tmp_path):
    turned = {
        1: ramp,
        2: ramp[:, ::-1],
        3: ramp[::-1, ::-1],
        4: ramp[::-1],
        5: ramp.transpose(1, 0, 2),
        6: np.rot90(ramp, 1),
        7: ramp[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(ramp, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "turned.png"), ramp)


def test_grey_palette_transparent_and_16_bit_images_become_rgb(ramp, tmp_path):
    grey = ramp[..., 1]
    expected = np.repeat(grey[..., None], 3, axis=-1)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(grey).convert("LA").save(tmp_path / "la.png")
    for name in ("grey", "deep", "palette", "la"):
        np.testing.assert_array_equal(read(tmp_path / f"{name}.png"), expected, err_msg=name)
    np.testing.assert_array_equal(read(grey), expected)


def test_what_is_transparent_lies_on_white(ramp, tmp_path):
    alpha = np.full((40, 60, 1), 255, np.uint8)
    alpha[:20] = 0
    Image.fromarray(np.concatenate([ramp, alpha], axis=-1)).save(tmp_path / "half.png")
    array = read(tmp_path / "half.png")
    assert (array[:20] == 255).all()
    np.testing.assert_array_equal(array[20:], ramp[20:])


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tiff", "bmp", "gif"])
def test_other_formats_are_read(suffix, ramp, tmp_path):
    smooth = Image.fromarray(ramp)
    smooth.save(tmp_path / f"photo.{suffix}")
    assert np.abs(read(tmp_path / f"photo.{suffix}").astype(int) - ramp).mean() < 12


def test_a_cmyk_jpeg_is_read(ramp, tmp_path):
    Image.fromarray(ramp).convert("CMYK").save(tmp_path / "print.jpg")
    assert np.abs(read(tmp_path / "print.jpg").astype(int) - ramp).mean() < 12


def bomb(path):
    Image.new("1", (20_000, 20_000)).save(path)


def truncated(path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:900])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bomb, r"megapixels"),
        (truncated, r"damaged or cut off"),
        (lambda path: path.write_text("not an image"), r"not an image that can be read"),
        (lambda path: path.write_bytes(b""), r"not an image that can be read"),
        (lambda path: path.mkdir(), r"a folder, where one photo was expected"),
        (lambda path: None, r"no such file"),
    ],
)
def test_what_is_no_photo_is_named_in_one_line(make, message, tmp_path):
    path = tmp_path / "photo.jpg"
    make(path)
    with pytest.raises(DeformscopeError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (np.zeros((4, 5, 3)), r"shape \(4, 5, 3\) and type float64: expected uint8"),
        (np.zeros((3, 4, 5), np.uint8), r"expected uint8 \[h w 3\]"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (torch.zeros(4, 5, 3), r"expected \[3 h w\]"),
        (torch.full((3, 4, 5), -1.5), r"floats in 0..1 or uint8; undo the normalisation"),
    ],
)
def test_arrays_and_tensors_of_another_kind_are_refused(photo, message):
    with pytest.raises(DeformscopeError, match=message):
        read(photo)


def test_folders_stand_for_the_photos_in_them(tmp_path, ramp):
    (tmp_path / "inner").mkdir()
    for name in ("b.JPG", "a.png", "inner/c.webp"):
        Image.fromarray(ramp).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photo")
    assert [p.name for p in find([tmp_path])] == ["a.png", "b.JPG", "c.webp"]
    assert find([tmp_path / "any.jpg"]) == [tmp_path / "any.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DeformscopeError, match="no photo in this folder"):
        find([tmp_path / "empty"])
