"""Where a photo lies in the network's input, found again by resizing one with a marked place as others do."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from deformscope import DeformscopeError, Placement

SIZES = [(576, 768), (768, 576), (333, 501), (480, 480), (1080, 1921), (257, 224)]
MARK = 24


def marked(size):
    """A photo with one bright square, and the square's centre (y, x)."""
    photo = np.zeros((*size, 3), np.uint8)
    top, left = size[0] // 2 - MARK, size[1] // 2 + 7
    photo[top : top + MARK, left : left + MARK] = 255
    return photo, (top + MARK / 2, left + MARK / 2)


def centre(pixels):
    """Centre of mass (y, x), continuous px."""
    weight = np.asarray(pixels, float).sum(axis=2)
    y, x = (np.arange(n) + 0.5 for n in weight.shape)
    return (weight.sum(axis=1) @ y / weight.sum(), weight.sum(axis=0) @ x / weight.sum())


def by_torchvision(*steps):
    transform = v2.Compose(steps)
    return lambda photo: transform(torch.from_numpy(photo).permute(2, 0, 1)).permute(1, 2, 0).numpy()


def letterbox(photo, side=320, centred=False):
    """As the detectors of one stage: the longer side resized, grey around or at the right and the bottom."""
    ratio = side / max(photo.shape[:2])
    high, wide = (round(n * ratio) for n in photo.shape[:2])
    resized = np.asarray(Image.fromarray(photo).resize((wide, high), Image.Resampling.BILINEAR))
    top, left = (round((side - n) / 2 - 0.1) for n in (high, wide)) if centred else (0, 0)
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[top : top + high, left : left + wide] = resized
    return canvas


WAYS = {
    "stretch": by_torchvision(v2.Resize((224, 320))),
    "crop": by_torchvision(v2.Resize(224), v2.CenterCrop(224)),
    "crop:256": by_torchvision(v2.Resize(256), v2.CenterCrop(224)),
    "pad": letterbox,
    "pad:300": lambda photo: np.pad(letterbox(photo, 300), ((0, 20), (0, 84), (0, 0))),
    "pad-centre": lambda photo: letterbox(photo, centred=True),
}


@pytest.mark.parametrize("fit", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_a_marked_place_is_found_again_in_the_networks_input(fit, size):
    photo, place = marked(size)
    made = WAYS[fit](photo)
    placement = Placement.fitted(size, made.shape[:2], fit)
    assert placement.size == size
    expected = placement.to_network(torch.tensor(place, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(centre(made), expected, atol=0.12)  # values are rounded to 8 bits
    np.testing.assert_allclose(placement.to_photo(torch.from_numpy(expected)).numpy(), place)


@pytest.mark.parametrize("size", SIZES)
def test_pillows_pad_and_fit_agree_to_about_a_px(size):
    photo, place = marked(size)
    for fit, function in (("pad-centre", ImageOps.pad), ("crop", ImageOps.fit)):
        made = function(Image.fromarray(photo), (300, 240))
        expected = Placement.fitted(size, (240, 300), fit).to_network(torch.tensor(place, dtype=torch.float64))
        np.testing.assert_allclose(centre(made), expected.numpy(), atol=1.1)


@pytest.mark.parametrize(
    ("size", "network"), [((300, 451), (300, 451)), ((576, 768), (240, 320)), ((333, 501), (213, 320))]
)
def test_a_plain_resize_needs_no_word(size, network):
    photo, place = marked(size)
    made = by_torchvision(v2.Resize(network))(photo)
    expected = Placement.fitted(size, network).to_network(torch.tensor(place, dtype=torch.float64))
    np.testing.assert_allclose(centre(made), expected.numpy(), atol=0.1)


@pytest.mark.parametrize(
    ("size", "network", "fit", "message"),
    [
        ((576, 768), (224, 224), None, r'photo of 576×768 px .* input has 224×224, .*fit="stretch".*"crop".*"pad"'),
        ((576, 768), (224, 224), "cut", r"fit='cut': expected one of 'stretch', 'crop', 'crop:N', 'pad'"),
        ((576, 768), (224, 224), "crop:0", r"fit='crop:0': expected one of"),
        ((576, 768), (224, 224), "stretch:9", r"fit='stretch:9': expected one of"),
        ((576, 768), (224, 224), "crop:200", r"becomes 200×266, from which .* 224×224 cannot be cut"),
        ((576, 768), (224, 224), "pad:300", r"becomes 225×300, to which .* 224×224 cannot be padded"),
        ((576, 768), (224, 224), "", r"fit='': expected one of"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(size, network, fit, message):
    with pytest.raises(DeformscopeError, match=message) as caught:
        Placement.fitted(size, network, fit)
    assert "\n" not in str(caught.value)
