"""Fields are drawn where they lie in the photo, or the user is asked how the network's input was made of it."""

import warnings
from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
import torch
from matplotlib.quiver import Quiver
from matplotlib.text import Text
from PIL import Image
from torchvision.transforms import v2

import deformscope as ds
from deformscope import CellGrid, DeformscopeError, Fields, OffsetField, Placement, draw
from deformscope.backdrop import on_photo
from deformscope.errors import DeformscopeWarning
from deformscope.fields.attention import AttentionField, levels_of

NETWORK = (224, 224)
WAYS = {
    "stretch": v2.Resize(NETWORK),
    "crop": v2.Compose([v2.Resize(224), v2.CenterCrop(224)]),
    "crop:256": v2.Compose([v2.Resize(256), v2.CenterCrop(224)]),
    "pad": lambda photo: v2.functional.pad(v2.functional.resize(photo, [168, 224]), [0, 0, 0, 56]),
    "pad-centre": lambda photo: v2.functional.pad(v2.functional.resize(photo, [168, 224]), [0, 28, 0, 28]),
}


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A photo of soft blotches."""
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def as_input(photo: np.ndarray, fit: str) -> torch.Tensor:
    return WAYS[fit](torch.from_numpy(photo.copy()).permute(2, 0, 1)).permute(1, 2, 0)[None]


def towards(target: tuple[float, float], network=NETWORK, reduction: float = 16.0, **known) -> OffsetField:
    """A field as captured, each of whose kernels points to a place (y, x) of the network's input."""
    h, w = (int(n // reduction) for n in network)
    cells = CellGrid((reduction, reduction), (reduction / 2, reduction / 2))
    field = OffsetField(
        torch.zeros(1, 1, 9, h, w, 2), input_size=(h, w), cells=cells, network_size=network, name="deform"
    )
    moves = (torch.tensor(target) - cells.to_network(field.centres())) / reduction
    return replace(field, offset=moves.expand(1, 1, 9, h, w, 2).contiguous(), **known)


def tips(figure) -> np.ndarray:
    (arrows,) = [one for one in figure.axes[0].get_children() if isinstance(one, Quiver)][:1]
    return np.column_stack([arrows.Y + arrows.V, arrows.X + arrows.U])


@pytest.mark.parametrize("fit", WAYS)
def test_arrows_to_the_middle_of_the_photo_meet_there_however_the_input_was_made(fit):
    photo = scene(576, 768)
    middle = Placement.fitted((576, 768), NETWORK, fit).to_network(torch.tensor([288.0, 384.0]))
    field = towards(tuple(middle.tolist()), image=as_input(photo, fit))
    for view in (draw.figure2, draw.growth):
        several = {"now": field} if view is draw.growth else field
        found = tips(view(several, photo, fit=fit, cell_step=1))
        # Arrows are enlarged by 1 in figure 2, by a readable factor about it in growth.
        if view is draw.figure2:
            found = tips(draw.figure2(field, photo, fit=fit, cell_step=1, scale=1.0))
            assert np.abs(found - (288, 384)).max() < 0.5
    page = ds.explore(field, photo, fit=fit)
    assert "<!doctype html>" in page.text[:40].lower()


@pytest.mark.parametrize(
    ("size", "network"), [((576, 768), (240, 320)), ((448, 448), (224, 224)), ((224, 224), (224, 224))]
)
def test_a_plain_resize_is_undone_without_a_word(size, network):
    field = towards((network[0] / 2, network[1] / 2), network)
    found = tips(draw.figure2(field, scene(*size), cell_step=1, scale=1.0))
    assert np.abs(found - np.array(size) / 2).max() < 1e-3


def attention(network=(60, 80), **known) -> AttentionField:
    points = torch.rand(1, 3, 2, 4, 2) * torch.tensor(network)
    level = levels_of([4])
    return AttentionField(points, None, points[:, :, 0, :1], level, ((6, 8),), network, name="decoder.0", **known)


DRAWN = {
    "figure1": lambda photo, **more: draw.figure1(towards((9, 9)), photo, **more),
    "figure2": lambda photo, **more: draw.figure2(towards((9, 9)), photo, **more),
    "figure3": lambda photo, **more: draw.figure3(towards((9, 9)), photo, **more),
    "overview": lambda photo, **more: draw.overview(towards((9, 9)), photo, **more),
    "sampling": lambda photo, **more: draw.sampling(towards((9, 9)), photo, **more),
    "segments": lambda photo, **more: draw.segments(towards((9, 9)), photo, **more),
    "flow": lambda photo, **more: draw.flow(towards((9, 9)), photo, **more),
    "growth": lambda photo, **more: draw.growth({"now": towards((9, 9))}, photo, **more),
    "queries": lambda photo, **more: draw.queries(attention(NETWORK), photo, [0], **more),
    "explore": lambda photo, **more: ds.explore(towards((9, 9)), photo, **more),
    "explore attention": lambda photo, **more: ds.explore(Fields({}, {"decoder.0": attention(NETWORK)}), photo, **more),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_photo_of_another_shape_needs_a_word_everywhere(name):
    with pytest.raises(DeformscopeError, match=r"photo of 96×128 px .* input has 224×224, .*fit=") as caught:
        DRAWN[name](scene(96, 128))
    assert "\n" not in str(caught.value)
    DRAWN[name](scene(96, 128), fit="stretch")


def test_fields_of_one_photo_are_not_drawn_on_another():
    placed = towards((9, 9), placements=(Placement((576, 768), (224 / 576, 224 / 768)),))
    with pytest.raises(DeformscopeError, match=r"photo of 600×400 px .*'deform' was computed from one of 576×768"):
        draw.figure2(placed, scene(600, 400))
    with pytest.raises(DeformscopeError, match=r"fit='crop': .* is known for 'deform'"):
        draw.figure2(placed, scene(576, 768), fit="crop")
    draw.figure2(placed, scene(576, 768))


def test_without_a_photo_the_networks_input_is_the_ground():
    photo = scene(576, 768)
    image = as_input(photo, "stretch")
    backdrop, (field,) = on_photo([towards((9, 9), image=image)])
    assert backdrop.size == NETWORK and np.array_equal(backdrop.pixels, image[0].numpy())
    assert np.abs(tips(draw.figure2(field, cell_step=1, scale=1.0)) - 9).max() < 1e-3
    assert ds.explore(field).text


def test_a_recorded_input_is_shown_in_px_of_the_photo_where_it_is_known_how_that_was_placed():
    photo = scene(576, 768)
    for fit in ("pad", "pad-centre"):
        placement = Placement.fitted((576, 768), NETWORK, fit)
        backdrop, _ = on_photo([towards((9, 9), image=as_input(photo, fit), placements=(placement,))])
        assert backdrop.size == (576, 768) and backdrop.pixels.shape == (168, 224, 3)
        assert np.abs(backdrop.pixels.astype(int) - as_input(photo, "pad")[0, :168].numpy()).max() == 0
    placement = Placement.fitted((576, 768), NETWORK, "crop")
    pixels = on_photo([towards((9, 9), image=as_input(photo, "crop"), placements=(placement,))])[0].pixels
    assert pixels.shape == (224, 298, 3) and (pixels[:, :37] == 255).all() and not (pixels[:, 37:261] == 255).all()


def test_another_photo_of_the_same_size_is_noticed_and_the_right_one_is_not():
    for fit in WAYS:
        photo = scene(576, 768)
        field = towards((9, 9), image=as_input(photo, fit))
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeformscopeWarning)
            on_photo([field], photo, fit)
        with pytest.warns(DeformscopeWarning, match=r"hardly resembles the input of 'deform'"):
            on_photo([field], scene(576, 768, seed=1), fit)


def test_a_field_made_by_hand_is_drawn_on_photos_of_its_own_size_alone():
    field = OffsetField.from_tensor(torch.randn(1, 18, 14, 14), reduction=16, name="raw")
    for size in ((224, 224), (210, 230)):  # maps are rounded to whole cells
        assert on_photo([field], scene(*size))[1][0].placement() == Placement(size)
    with pytest.raises(DeformscopeError, match=r"photo of 576×768 px .*map of 'raw' covers 224×224 px"):
        draw.figure2(field, scene(576, 768))
    assert on_photo([field], scene(576, 768), "stretch")[1][0].pixels_per_cell() == pytest.approx((576 / 14, 768 / 14))


def test_cells_of_unknown_places_are_drawn_on_request_in_cells_of_the_map():
    field = replace(towards((9, 9)), cells=None, unplaced="torch.roll in 'stage3'")
    with pytest.raises(DeformscopeError, match=r"of 'deform' are not known \(torch.roll in 'stage3'\).*field.at"):
        draw.figure2(field, scene(224, 224))
    own = field.at(CellGrid())
    backdrop, _ = on_photo([own])
    assert backdrop.size == own.input_size == (14, 14) and (backdrop.pixels == 255).all()
    draw.figure2(own)
    placed = field.at(CellGrid((16.0, 16.0), (8.0, 8.0)))
    assert on_photo([placed], scene(224, 224))[1][0].pixels_per_cell() == (16, 16)


def test_titles_say_photo_px_to_two_digits_and_lists_the_networks_stride():
    field = towards((9, 9))
    words = [text.get_text() for text in draw.figure2(field, scene(370, 370)).findobj(Text)]
    assert any("deform · 26\N{NO-BREAK SPACE}px/cell" in one for one in words)
    assert "14×14 cells, stride 16 network px" in repr(field)
    assert "stride" in Fields({"deform": field})._repr_html_()
    words = [text.get_text() for text in draw.figure2(field, scene(2240, 1120), fit="stretch").findobj(Text)]
    assert any("deform · 160×80\N{NO-BREAK SPACE}px/cell" in one for one in words)


def test_sampling_points_are_stacked_along_the_way_of_the_input_never_across_branches():
    low, branch, top = (replace(towards((9, 9)), name=name) for name in ("low", "branch", "top"))
    low, branch, top = replace(low, below=""), replace(branch, below=""), replace(top, below="low")
    figure = draw.sampling([low, branch, top], scene(224, 224), depth=2)
    assert any(text.get_text() == "top ← low" for text in figure.findobj(Text))
    with pytest.raises(DeformscopeError, match=r"depth=2: .*\('branch'\); nothing deformable is below it"):
        draw.sampling([low, branch], scene(224, 224), depth=2)
    with pytest.raises(DeformscopeError, match=r"depth=2: .*the layer below is 'low', which is not among the fields"):
        draw.sampling([branch, top], scene(224, 224), depth=2)


@pytest.mark.parametrize(("largest", "full"), [(0.98, 1), (1.94, 2), (4.2, 5)])
def test_modulation_beyond_one_has_a_scale_that_covers_it_and_says_so(largest, full):
    field = towards((112, 112), modulation=torch.full((1, 1, 9, 14, 14), largest))
    figure = draw.sampling(field, scene(224, 224))
    (dots,) = [one for one in figure.axes[0].collections if one.get_array() is not None]
    assert dots.get_clim() == (0, full)
    assert any(f"(dark 0, bright {full})" in text.get_text() for text in figure.findobj(Text))
    words = " ".join(text.get_text() for text in draw.overview(field, scene(224, 224)).findobj(Text))
    assert f"modulation: dark 0, bright {full}" in words


@pytest.fixture
def unchecked():
    """Without the tests' own check of types, which stops wrong ones before they reach the code."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def encoder() -> AttentionField:
    points = torch.rand(1, 48, 2, 4, 2)
    return AttentionField(points, None, points[:, :, 0, :1], levels_of([4]), ((6, 8),), (60, 80), name="encoder.0")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw.figure1([towards((1, 1))] * 2, scene(224, 224)), r"field: 2 given .*figure2 several"),
        (
            lambda: draw.figure2(torch.zeros(1, 18, 4, 5)),
            r"of shape \(1, 18, 4, 5\); .*OffsetField.from_tensor",
        ),
        (lambda: draw.figure2([torch.zeros(1, 18, 4, 5)]), r"a tensor of shape \(1, 18, 4, 5\)"),
        (lambda: draw.figure2(attention()), r"'decoder.0' is deformable attention; draw.queries"),
        (lambda: draw.figure2(Fields({}, {"e": encoder()})), r"'encoder.0' is deformable attention; .*encoder_fields"),
        (lambda: draw.figure2("photo.jpg"), r"fields: str given; expected an OffsetField"),
        (lambda: draw.figure2(None), r"fields: NoneType given; expected an OffsetField"),
        (lambda: draw.growth({}), r"fields: none given"),
        (lambda: draw.figure2(towards((1, 1)), fit="crop"), r"fit='crop': .*give the photo too"),
        (lambda: draw.figure2(towards((1, 1))), r"photo=None: the network's input was not recorded with 'deform'"),
        (lambda: ds.explore([]), r"fields: none given"),
        (lambda: ds.analyse(torch.nn.Conv2d(3, 3, 1), scene(8, 8)), r"Conv2d is no detector.*ds.adapt.*ds.capture"),
    ],
)
def test_the_wrong_function_names_the_right_one(call, message, unchecked):
    with pytest.raises(DeformscopeError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_figure_1_takes_the_only_field_of_a_capture():
    assert draw.figure1(Fields({"deform": towards((9, 9))}), scene(224, 224)).axes
