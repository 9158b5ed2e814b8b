"""EXIF orientation: whichever frame the boxes were drawn in, they end up on their objects."""

import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from deformscope.datasets.coco import read_coco
from deformscope.datasets.photos import Header, header, turned_box, turned_mask
from deformscope.errors import DeformscopeError
from deformscope.photo import read

TURNED = range(2, 9)
STORED = (40, 70)
"""Height and width as the file stores them."""


def photo(path, orientation, size=STORED, box=(11, 5, 20, 9), **settings):
    """A dark photo with a bright box (x, y, width, height in the pixels as stored)."""
    x, y, w, h = box
    array = np.zeros((*size, 3), dtype=np.uint8)
    array[y : y + h, x : x + w] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(path, exif=exif, **settings)


def bright(array):
    """The box of what is bright, xywh."""
    rows, columns = np.flatnonzero((array > 127).any((1, 2))), np.flatnonzero((array > 127).any((0, 2)))
    return [int(v) for v in (columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])]


def one_photo(folder, orientation, noted, box, suffix="png", **settings):
    """The folder with nothing but that photo and that box."""
    name = f"turned.{suffix}"
    photo(folder.photos / name, orientation, **settings)
    x, y, w, h = box
    folder.content["images"] = [{"id": 1, "file_name": name, "height": noted[0], "width": noted[1]}]
    folder.content["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": box, "iscrowd": 0}
        | {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
    ]
    return folder.write()


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_header_tells_what_the_photo_will_be(tmp_path, orientation, suffix):
    photo(tmp_path / f"a.{suffix}", orientation)
    found = header(tmp_path / f"a.{suffix}")
    assert found == Header(STORED, orientation)
    assert found.upright == read(tmp_path / f"a.{suffix}").shape[:2]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(5, 9))
@pytest.mark.parametrize("frame", ["stored", "upright"])
def test_the_noted_size_tells_the_frame(folder, orientation, frame, suffix):
    box = (11, 5, 20, 9)
    if frame == "upright":
        photo(folder.root / "a.png", orientation)
        box = bright(read(folder.root / "a.png"))
    noted = STORED if frame == "stored" else STORED[::-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = read_coco(one_photo(folder, orientation, noted, list(box), suffix))
    (only,) = data.photos
    (one,) = only.objects
    array = only.read()
    assert array.shape[:2] == only.size == STORED[::-1]
    assert list(one.bbox) == bright(array)
    assert (only.mask(one) == (array[..., 0] > 127)).all()
    (noted_again,) = data.truth()["annotations"]
    assert noted_again["bbox"] == bright(array) and noted_again["area"] == 20 * 9


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_where_the_size_does_not_tell_it_is_said_once_and_upright_is_taken(folder, orientation):
    photo(folder.root / "a.png", orientation)
    box = bright(read(folder.root / "a.png"))
    with pytest.warns(UserWarning, match=r"1 photos \(turned.png…\).* taken to be in the photos upright") as said:
        data = read_coco(one_photo(folder, orientation, STORED, box))
    assert len(said) == 1 and "\n" not in str(said[0].message)
    (one,) = data.photos[0].objects
    assert list(one.bbox) == bright(data.photos[0].read())


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_photos_that_tell_speak_for_those_that_do_not(folder, orientation):
    one_photo(folder, orientation, STORED, [11, 5, 20, 9])
    photo(folder.photos / "tells.png", 6)
    folder.images.append({"id": 2, "file_name": "tells.png", "height": STORED[0], "width": STORED[1]})
    with pytest.warns(UserWarning, match="1 photos .* taken to be in the photos as the files store them"):
        data = read_coco(folder.write())
    (one,) = data.photos[0].objects
    array = data.photos[0].read()
    assert list(one.bbox) == bright(array)
    assert (data.photos[0].mask(one) == (array[..., 0] > 127)).all()


def test_a_square_photo_on_its_side_does_not_tell_either(folder):
    with pytest.warns(UserWarning, match="whose noted size does not tell"):
        read_coco(one_photo(folder, 6, (40, 40), [11, 5, 20, 9], size=(40, 40)))


def test_neither_size_is_an_error(folder):
    with pytest.raises(DeformscopeError, match=r"turned\.png: 40×70 px where the annotations say 41×70"):
        read_coco(one_photo(folder, 6, (70, 41), [11, 5, 20, 9]))


@pytest.mark.parametrize(
    ("kind", "value"),
    [(3, struct.pack("<HH", 0, 0)), (3, struct.pack("<HH", 9, 0)), (2, b"6\0\0\0"), (12, b"\1\0\0\0")],
)
def test_an_orientation_that_is_none_is_none(tmp_path, kind, value):
    """Zero, nine, a text, a double that lies beyond the end."""
    tag = struct.pack("<HHI", 0x0112, kind, 1) + value
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + tag + struct.pack("<I", 0)
    Image.new("RGB", STORED[::-1]).save(tmp_path / "a.jpg", exif=exif)
    assert header(tmp_path / "a.jpg") == Header(STORED, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_and_masks_turn_like_photos(tmp_path, orientation):
    photo(tmp_path / "a.png", orientation)
    array = read(tmp_path / "a.png")
    stored = np.zeros(STORED, dtype=bool)
    stored[5:14, 11:31] = True
    assert (turned_mask(stored, orientation) == (array[..., 0] > 127)).all()
    assert list(turned_box((11, 5, 20, 9), STORED, orientation)) == bright(array)
