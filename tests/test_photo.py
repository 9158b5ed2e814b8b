"""Any photo comes in upright, in RGB; whatever is none gets one clear line."""

import struct
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, features

from deformscope import DeformscopeError
from deformscope.datasets.photos import header
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


@pytest.mark.parametrize("suffix", ["png", "tif"])  # Pillow turns a TIFF itself
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied(orientation, suffix, ramp, tmp_path):
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
    Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path / f"turned.{suffix}", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / f"turned.{suffix}"), ramp)


def test_grey_palette_and_transparent_images_become_rgb(ramp, tmp_path):
    grey = ramp[..., 1]
    expected = np.repeat(grey[..., None], 3, axis=-1)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(grey).convert("LA").save(tmp_path / "la.png")
    for name in ("grey", "palette", "la"):
        np.testing.assert_array_equal(read(tmp_path / f"{name}.png"), expected, err_msg=name)
    np.testing.assert_array_equal(read(grey), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "La", "P", "PA", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"])
def test_every_mode_of_pillows_gives_the_photo_that_it_holds(mode):
    y, x = np.mgrid[:32, :48]
    grey = np.stack([8 * y // 2 + 2 * x] * 3, axis=-1).astype(np.uint8)
    via = {"La": "LA", "RGBa": "RGBA", "PA": "LA"}.get(mode)
    image = Image.fromarray(grey).convert("L").convert("RGB")
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    elif mode in ("L", "LA", "P", "La", "PA"):
        image = image.convert("L")
        image = image if mode == "L" else image.convert(via or mode)
        image = image.convert(mode)
    else:
        image = (image.convert(via) if via else image).convert(mode)
    assert image.mode == mode
    # A colour space of 8 bits loses a few steps on the way there and back.
    assert np.abs(read(image).astype(int) - grey).max() <= (3 if mode in ("LAB", "YCbCr", "HSV") else 0)


def test_a_black_and_white_image_is_read():
    grey = np.random.default_rng(0).integers(0, 2, (9, 13), dtype=np.uint8) * 255
    np.testing.assert_array_equal(read(Image.fromarray(grey).convert("1")), np.repeat(grey[..., None], 3, axis=-1))


def full_range(seed: int = 0) -> np.ndarray:
    """A smooth grey photo with some of every value of 8 bits."""
    y, x = np.mgrid[:160, :256]
    noise = np.random.default_rng(seed).normal(0, 2, x.shape)
    return np.clip(x + 10 * np.sin(y / 9) + noise, 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        (lambda grey: grey.astype(np.uint16) * 257, "png"),
        (lambda grey: grey.astype(np.uint16) * 257, "tiff"),
        (lambda grey: grey.astype(np.uint16) * 16, "png"),  # 12 bits
        (lambda grey: grey.astype(np.uint16) + 1000, "tiff"),
        (lambda grey: grey.astype(np.int32) * 2**22, "tiff"),
        (lambda grey: grey.astype(np.int32) - 128, "tiff"),
        (lambda grey: grey.astype(np.float32) / 255, "tiff"),
        (lambda grey: grey.astype(np.float32), "tiff"),
        (lambda grey: grey.astype(np.float32) * 1e30 - 1e31, "tiff"),
    ],
)
def test_deep_grey_photos_look_the_same_in_any_unit(values, suffix, tmp_path):
    grey = full_range()
    Image.fromarray(values(grey)).save(tmp_path / f"deep.{suffix}")
    found = read(tmp_path / f"deep.{suffix}")
    assert found.shape == (*grey.shape, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - grey[..., None]).max() <= 2


def test_unsigned_32_bits_are_not_taken_for_signed_ones(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    grey = full_range()
    tifffile.imwrite(tmp_path / "deep.tiff", grey.astype(np.uint32) * 2**24)
    assert np.abs(read(tmp_path / "deep.tiff").astype(int) - grey[..., None]).max() <= 2


def test_deep_grey_photos_with_gaps_and_hot_pixels_can_still_be_seen():
    grey = full_range()
    holed = grey.astype(np.float32)
    holed[3, 5], holed[7, 9], holed[11, 13] = np.nan, np.inf, 1e20
    found = read(Image.fromarray(holed))
    assert found[3, 5].tolist() == [0, 0, 0] and found[7, 9].tolist() == found[11, 13].tolist() == [255] * 3
    seen = np.ones(grey.shape, bool)
    seen[[3, 7, 11], [5, 9, 13]] = False
    assert np.abs(found[seen].astype(int) - grey[seen][:, None]).max() <= 2
    for constant in (0.0, 3.5, np.nan):
        assert (read(Image.fromarray(np.full((4, 5), constant, np.float32))) == 0).all()
    stars = np.zeros((100, 100), np.float32)
    stars[50, 50] = 7
    assert read(Image.fromarray(stars))[50, 50].tolist() == [255] * 3


def badly_typed(orientation: int) -> bytes:
    """EXIF with an orientation, a resolution that is text, and a text that is a number."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    entries += struct.pack("<HHI4s", 0x011A, 2, 4, b"abc\0")
    entries += struct.pack("<HHIHH", 0x9000, 3, 1, 7, 0)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 3) + entries + struct.pack("<I", 0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_badly_typed_tag_beside_the_orientation_does_not_stop_the_photo(suffix, ramp, tmp_path):
    smooth = Image.fromarray(np.ascontiguousarray(np.rot90(ramp, 1)))
    smooth.save(tmp_path / f"turned.{suffix}", exif=badly_typed(6), quality=100)
    found = read(tmp_path / f"turned.{suffix}")
    assert found.shape == ramp.shape
    assert np.abs(found.astype(int) - ramp).mean() < 6


@pytest.mark.parametrize("cut", range(6, 60, 3))
def test_exif_that_is_cut_off_or_noise_does_not_stop_the_photo(cut, ramp, tmp_path):
    noise = np.random.default_rng(cut).integers(0, 256, 60, dtype=np.uint8).tobytes()
    for number, exif in enumerate((badly_typed(3)[:cut], badly_typed(3)[:cut] + noise, b"Exif\0\0" + noise)):
        Image.fromarray(ramp).save(tmp_path / f"{number}.jpg", exif=exif)
        assert read(tmp_path / f"{number}.jpg").shape == ramp.shape


@pytest.mark.parametrize("reading", [read, header])
def test_reading_in_a_thread_leaves_the_warnings_of_the_process_alone(reading, ramp, tmp_path, monkeypatch):
    """Warning filters belong to the process: a thread that restores them undoes what another one has done since."""
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    opening, goes_on, opened = threading.Event(), threading.Event(), Image.open

    def slow(path):
        opening.set()
        assert goes_on.wait(60)
        return opened(path)

    monkeypatch.setattr(Image, "open", slow)
    thread = threading.Thread(target=reading, args=(tmp_path / "ramp.png",))
    before = warnings.filters, warnings.showwarning
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        thread.start()
        assert opening.wait(60)
    goes_on.set()
    thread.join()
    with pytest.warns(UserWarning, match="after the block"):
        warnings.warn("a warning after the block", stacklevel=1)
    assert not met
    assert warnings.filters is before[0] and warnings.showwarning is before[1]


@pytest.mark.parametrize("reading", [read, header])
def test_damage_beside_the_pixels_is_not_told(reading, ramp, tmp_path):
    Image.fromarray(ramp).save(tmp_path / "damaged.jpg", exif=badly_typed(3)[:24])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reading(tmp_path / "damaged.jpg")


def test_what_is_transparent_lies_on_white(ramp, tmp_path):
    alpha = np.full((40, 60, 1), 255, np.uint8)
    alpha[:20] = 0
    Image.fromarray(np.concatenate([ramp, alpha], axis=-1)).save(tmp_path / "half.png")
    array = read(tmp_path / "half.png")
    assert (array[:20] == 255).all()
    np.testing.assert_array_equal(array[20:], ramp[20:])


FORMATS = "jpg jfif jpe webp avif tiff bmp dib gif jp2 j2k jpx apng ppm pnm tga pcx sgi qoi dds mpo"


@pytest.mark.parametrize("suffix", FORMATS.split())
def test_other_formats_are_read_and_found_in_folders(suffix, ramp, tmp_path):
    smooth = Image.fromarray(ramp)
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("needs a Pillow with AVIF")
    smooth.save(tmp_path / f"photo.{suffix.upper()}")
    (tmp_path / f"photo.{suffix.upper()}").rename(tmp_path / f"photo.{suffix}")
    assert find([tmp_path]) == [tmp_path / f"photo.{suffix}"]
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
    (tmp_path / ".thumbnails").mkdir()
    for hidden in ("._a.png", "inner/._c.webp", ".thumbnails/a.png"):  # of macOS, and of viewers
        (tmp_path / hidden).write_bytes(b"Mac OS X")
    assert [p.name for p in find([tmp_path])] == ["a.png", "b.JPG", "c.webp"]
    assert find([tmp_path / "any.jpg"]) == [tmp_path / "any.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DeformscopeError, match="no photo in this folder"):
        find([tmp_path / "empty"])


@pytest.mark.parametrize("kind", ["photo.jpg", "progressive.jpg", "grey.jpg", "turned.jpg", "photo.png", "16 bits.png"])
def test_large_files_have_the_same_pixels_as_small_ones(kind, tmp_path, monkeypatch, ramp):
    random = np.random.default_rng(0).integers(0, 60, ramp.shape, dtype=np.uint8)
    image, exif = Image.fromarray(ramp // 2 + random), Image.Exif()
    exif[0x0112] = 6 if kind == "turned.jpg" else 1
    if kind == "grey.jpg":
        image = image.convert("L")
    if kind == "16 bits.png":
        image = Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257)
    options = {"exif": exif, "quality": 80, "progressive": kind == "progressive.jpg"} if "jpg" in kind else {}
    image.save(tmp_path / kind, **options)
    small = read(tmp_path / kind)
    monkeypatch.setattr("deformscope.photo.LARGE", 100)
    large = read(tmp_path / kind)
    assert large.flags.c_contiguous and large.flags.writeable
    np.testing.assert_array_equal(large, small)


def test_a_large_file_that_is_cut_off_is_named(tmp_path, monkeypatch, ramp):
    monkeypatch.setattr("deformscope.photo.LARGE", 100)
    for suffix in ("jpg", "png"):
        Image.fromarray(ramp).save(tmp_path / f"photo.{suffix}")
        content = (tmp_path / f"photo.{suffix}").read_bytes()
        (tmp_path / f"photo.{suffix}").write_bytes(content[: len(content) * 3 // 4])
        with pytest.raises(DeformscopeError, match=r"photo.*damaged or cut off"):
            read(tmp_path / f"photo.{suffix}")
