"""An encoder's attention as kernels: their mean, divergence and radius are those of the weighted points."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import deformscope
from deformscope.fields.attention import AttentionField, levels_of
from deformscope.fields.fields import Fields
from deformscope.fields.moments import encoder_fields, moments, with_encoders

SIZES = ((5, 8), (3, 4))
INPUT = (40, 64)


def encoder(seed=0, weights=True) -> AttentionField:
    random = torch.Generator().manual_seed(seed)
    q, heads, points = 52, 3, 5
    reference = torch.rand(1, q, 2, 2, generator=random) * torch.tensor(INPUT)
    moved = torch.randn(1, q, heads, points, 2, generator=random) * 9
    level = levels_of([3, 2])
    shares = torch.randn(1, q, heads, points, generator=random).softmax(-1) if weights else None
    return AttentionField(
        reference[:, :, level][:, :, None] + moved, shares, reference, level, SIZES, INPUT, name="encoder"
    )


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("head", [None, 2])
@pytest.mark.parametrize("level", [0, 1])
def test_mean_and_radius_are_those_of_the_weighted_points(weighted, head, level):
    field = encoder(weights=weighted)
    kernels = moments(field, level, head)
    (h, w), start = SIZES[level], 40 * level
    cell = np.array([INPUT[0] / h, INPUT[1] / w])
    assert kernels.reduction == tuple(cell) and kernels.offset.shape == (1, 1, 4, h, w, 2)
    d_f, d_k = deformscope.split(kernels.offset)
    radius = deformscope.radius(d_k, kernels.kernel_size)
    heads = range(3) if head is None else [head]
    for y in range(h):
        for x in range(w):
            query = start + y * w + x
            total, mean, square = 0.0, np.zeros(2), np.zeros(2)
            for one in heads:
                for point in range(5):
                    weight = float(field.weights[0, query, one, point]) if weighted else 1.0
                    from_reference = field.points[0, query, one, point].double().numpy() - (
                        field.level_reference[0, query, field.level[point]].double().numpy()
                    )
                    total += weight
                    mean += weight * from_reference / cell
                    square += weight * (from_reference / cell) ** 2
            mean, square = mean / total, square / total
            deviation = np.sqrt(square - mean**2)
            np.testing.assert_allclose(d_f[0, 0, 0, y, x], mean, atol=1e-4)
            assert float(radius[0, 0, y, x]) == pytest.approx(2 * np.sqrt(deviation.prod()), abs=1e-4)


def test_the_kernels_stand_on_their_cells_and_object_queries_have_none():
    field = encoder()
    kernels = encoder_fields(field)
    assert [one.name for one in kernels] == ["encoder[level 0]", "encoder[level 1]"]
    centres = kernels[1].to_pixels(kernels[1].centres())
    np.testing.assert_allclose(centres[2, 3], [2.5 * 40 / 3, 3.5 * 16], rtol=1e-6)
    few = AttentionField(
        field.points[:, :7],
        field.weights[:, :7],
        field.level_reference[:, :7],
        field.level,
        SIZES,
        INPUT,
        name="decoder",
    )
    assert encoder_fields(few) == []
    with pytest.raises(deformscope.DeformscopeError, match="decoder: 7 queries are not the 52 cells"):
        moments(few, 0)
    with pytest.raises(deformscope.DeformscopeError, match="query_level=2: expected 0 to 1"):
        moments(field, 2)
    with pytest.raises(deformscope.DeformscopeError, match="head=3: expected 0 to 2"):
        moments(field, 0, 3)


def test_rounding_is_no_displacement():
    field = encoder()
    still = field.level_reference[:, :, field.level][:, :, None].expand(-1, -1, 3, -1, -1) + 3e-6
    kernels = moments(AttentionField(**vars(field) | {"points": still}), 0)
    assert float(deformscope.split(kernels.offset)[0].abs().max()) == 0


def test_the_mass_of_levels_is_the_share_of_the_weights():
    field = encoder()
    wanted = torch.stack([field.weights[..., :3].sum(-1), field.weights[..., 3:].sum(-1)], dim=-1)
    torch.testing.assert_close(field.level_mass(), wanted)
    assert field.level_mass().sum(-1).allclose(torch.ones(()))


def test_levels_are_chosen_by_their_names_or_by_that_of_the_attention(make_field):
    convolution = make_field()
    few = replace(
        encoder(), points=encoder().points[:, :7], weights=None, level_reference=encoder().level_reference[:, :7]
    )
    fields = Fields({"layer": convolution}, {"encoder": encoder(), "decoder": few})
    levels = ["encoder[level 0]", "encoder[level 1]"]

    def chosen(*patterns, head=None):
        found = with_encoders(fields, patterns, head)
        assert all(name == field.name for name, field in found.items())
        return list(found), list(found.attention)

    assert chosen() == (["layer", *levels], ["encoder", "decoder"])
    assert chosen("encoder") == chosen("enc*der") == (levels, ["encoder"])
    assert chosen("encoder[level 1]") == chosen("*level 1?") == (levels[1:], [])
    assert chosen("layer") == (["layer"], []) and chosen("decoder") == ([], ["decoder"])
    assert chosen("encoder", head=2)[0] == ["encoder[level 0, head 2]", "encoder[level 1, head 2]"]
    with pytest.raises(deformscope.DeformscopeError, match=r"no deformable call named 'nothing'.*level 1.*'decoder'"):
        chosen("nothing")


def test_centre_and_viewpoints_are_weighted_means():
    field = encoder()
    share = field.weights[0, 1].flatten() / field.weights[0, 1].sum()
    centre = (share[:, None] * field.points[0, 1].reshape(-1, 2)).sum(0)
    np.testing.assert_allclose(field.centre()[0, 1], centre, rtol=1e-5)
    d_f, d_k = field.split()
    torch.testing.assert_close(d_f + d_k, field.displacement())
    residual = (d_k * field.weights[..., None]).sum(3)
    torch.testing.assert_close(residual, torch.zeros_like(residual), atol=1e-4, rtol=0)
