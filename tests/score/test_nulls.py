"""The nulls: each takes away what it says and leaves the rest."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deformscope import DeformscopeError, capture
from deformscope.detectors.dense.config import DenseConfig
from deformscope.detectors.dense.dense import DenseDetector
from deformscope.fields.cell_maps import CellMaps
from deformscope.fields.stack import composed
from deformscope.score import passes
from deformscope.score.passes import look, probe


@pytest.fixture
def maps(make_field):
    field = make_field(g=1, h=9, w=14, kernel=(3, 2))
    return CellMaps.of(field), field.pixels_per_cell()


def test_noise_keeps_the_spectra_and_the_mean_and_loses_the_place(maps):
    field, per_cell = maps
    noise = passes.noise(field, np.random.default_rng(0), per_cell)
    for before, after in (
        (field.d_f[..., 0], noise.d_f[..., 0]),
        (field.d_f[..., 1], noise.d_f[..., 1]),
        (field.height, noise.height),
        (field.width, noise.width),
    ):
        assert after.mean() == pytest.approx(before.mean())
        a, b = (np.abs(np.fft.fft2(values)) for values in (before, after))
        assert b == pytest.approx(a, rel=1e-6, abs=1e-6)
        assert not np.allclose(before, after, atol=0.1)
    cross = [np.fft.fft2(m.d_f[..., 0]) * np.fft.fft2(m.width).conj() for m in (field, noise)]
    assert cross[1] == pytest.approx(cross[0], rel=1e-6, abs=1e-6)


def test_noises_divergence_is_that_of_its_own_d_f(maps):
    field, per_cell = maps
    noise = passes.noise(field, np.random.default_rng(0), per_cell)
    # In input cells; output cells are stride (2, 1) input cells apart.
    expected = np.gradient(noise.d_f[..., 0] / per_cell[0], 2, axis=0) + np.gradient(
        noise.d_f[..., 1] / per_cell[1], 1, axis=1
    )
    assert noise.div == pytest.approx(expected)


def test_shuffled_of_itself_is_itself_and_of_another_size_is_stretched(maps):
    field, _ = maps
    same = passes.shuffled(field, field)
    assert same.d_f == pytest.approx(field.d_f)
    assert same.div == pytest.approx(field.div)
    ramp = np.tile(np.linspace(0, 1, 5)[:, None], (1, 4))
    other = CellMaps(np.stack([ramp, ramp], -1), ramp, ramp, ramp, (0.0, 0.0), (3.0, 2.0))
    stretched = passes.shuffled(field, other)
    assert stretched.div.shape == field.div.shape
    assert stretched.div[:, 3] == pytest.approx(np.linspace(0, 1, field.div.shape[0]))


def test_the_centre_prior_leaves_half_of_the_photo_on_each_side_of_zero():
    prior = passes.centre((240, 320))
    assert (prior.div < 0).mean() == pytest.approx(0.5, abs=0.01)
    places = prior.centres()
    assert prior.d_f + places == pytest.approx(np.broadcast_to([120.0, 160.0], places.shape))


def test_filled_boxes_know_the_best_box_around_a_place():
    boxes = np.array([[0.0, 0.0, 100.0, 60.0], [40.0, 20.0, 80.0, 40.0]])
    maps = passes.filled((120, 200), boxes, np.array([0.9, 0.2]))
    at = lambda values, y, x: float(maps.at(values, np.array([[y, x]], dtype=float))[0])  # noqa: E731
    assert at(maps.div, 30, 60) == pytest.approx(passes.LEAST_SCORE - 0.9)  # the better one covers the other
    assert at(maps.height, 30, 60) == pytest.approx(60)
    assert at(maps.width, 30, 60) == pytest.approx(100)
    assert at(maps.div, 90, 150) == passes.LEAST_SCORE
    assert not maps.d_f[-1, -1].any()


def test_equally_strong_maps_differ_only_in_pattern(maps):
    field, _ = maps
    weak = replace(field, d_f=field.d_f[::-1] * 0.01, div=field.div[::-1] * 0.01)
    scaled = passes.as_strong(weak, field)
    assert (scaled.d_f**2).mean() == pytest.approx((field.d_f**2).mean())
    assert scaled.div == pytest.approx(field.div[::-1])
    assert passes.as_strong(passes.zero((90, 120)), field).d_f.max() == 0


def test_fresh_convolutions_are_new_in_the_copy_and_untouched_in_the_model(small):
    names = probe(small).convolutions
    assert names == tuple(f"heads.stride{s}.deform.conv_offset" for s in (16, 32, 8))
    before = {name: value.clone() for name, value in small.state_dict().items()}
    copy = passes.fresh_copy(small, names, seed=3)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    for name, value in copy.state_dict().items():
        drawn = name.rsplit(".", 1)[0] in names
        assert torch.equal(value, before[name]) != drawn
    again = passes.fresh_copy(small, names, seed=3)
    assert torch.equal(again.get_submodule(names[0]).weight, copy.get_submodule(names[0]).weight)
    other = passes.fresh_copy(small, names, seed=4)
    assert not torch.equal(other.get_submodule(names[0]).weight, copy.get_submodule(names[0]).weight)
    assert abs(float(copy.get_submodule(names[0]).weight.max()) - (16 * 9) ** -0.5) < 1e-3


def test_look_keeps_the_chosen_layers_and_names_those_that_are_not_finite(small):
    photo = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    seen = look(small, photo, ["*stride16*"])
    assert list(seen.maps) == ["heads.stride16.deform"]
    with torch.no_grad():
        small.heads["stride8"].deform.conv_offset.bias[1] = torch.nan
    seen = look(small, photo)
    assert seen.broken == ("heads.stride8.deform",)
    assert sorted(seen.maps) == ["heads.stride16.deform", "heads.stride32.deform"]
    with pytest.raises(DeformscopeError, match="no deformable call named 'layer4'"):
        look(small, photo, ["layer4"])


def test_together_layers_are_measured_as_the_one_field_they_make():
    torch.manual_seed(0)
    detector = DenseDetector(DenseConfig(("cat",), channels=16, shorter_side=64, deform_layers=2)).eval()
    for name, parameter in detector.named_parameters():
        if "conv_offset" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    photo = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    seen = look(detector, photo, ["*stride16.deform"], together=True)
    with capture(detector) as fields:
        detector(photo)
    lower, upper = fields["heads.stride16.before.0"], fields["heads.stride16.deform"]
    expected = CellMaps.of(composed([lower, upper]))
    assert list(seen.maps) == ["heads.stride16.deform"]
    assert np.array_equal(seen.maps["heads.stride16.deform"].height, expected.height)
    assert not np.array_equal(CellMaps.of(upper).height, expected.height)
    with torch.no_grad():
        detector.heads["stride16"].before[0].conv_offset.bias[1] = torch.nan
    assert "heads.stride16.deform" in look(detector, photo, together=True).broken
