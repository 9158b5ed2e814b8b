"""Receptive fields over noisy copies are the mean of those of each copy, as a literal loop computes it."""

import pytest
import torch
from torch import nn

import deformscope as ds
from deformscope.photo import read


def by_hand(output, image, inside, copies, noise, seed):
    """Add noise, differentiate, average: once more, without the package."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(copies):
        random = torch.randn(image.shape, generator=generator, dtype=image.dtype)
        copy = image.clone()
        spread = noise * (image[inside].max() - image[inside].min())
        copy[inside] += spread * random[inside]
        copy.requires_grad_()
        output(copy).backward()
        found.append(copy.grad[0].abs().sum(dim=0))
    return torch.stack(found).mean(dim=0)


def test_of_any_model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 1, 3)).double()
    image = torch.randn(1, 3, 9, 11, dtype=torch.float64)

    def of(out):
        return out[0, 0, 2, 3]

    inside = torch.ones_like(image, dtype=torch.bool)
    several = {"copies": 5, "noise": 0.2, "seed": 3}
    found = ds.explain(net, image, of=of, **several).receptive_field
    wanted = by_hand(lambda copy: of(net(copy)), image, inside, **several)
    torch.testing.assert_close(found.gradient, wanted, rtol=1e-10, atol=1e-12)
    assert found.copies == 5
    plain = ds.explain(net, image, of=of).receptive_field
    assert plain.copies == 0 and (plain.gradient - wanted).abs().max() > 0.01 * wanted.max()
    other = ds.explain(net, image, of=of, **several | {"seed": 4}).receptive_field
    assert not torch.equal(other.gradient, found.gradient)


def test_a_detection_is_predicted_again_in_each_copy_and_the_padding_stays(thin_rcnn, cat):
    photo, several = read(cat)[:250], {"copies": 2, "noise": 0.05, "seed": 1}
    why = ds.explain(thin_rcnn, photo, of="left", min_score=0.0, **several)
    batch, (place,) = thin_rcnn.prepare([photo])
    high, wide = (round(size * scale) for size, scale in zip(place.size, place.scale, strict=True))
    assert (high, wide) != tuple(batch.shape[-2:])
    inside = torch.zeros_like(batch, dtype=torch.bool)
    inside[..., :high, :wide] = True

    def output(copy):
        return thin_rcnn.repredict(copy, place, why.detection)["unclipped"][0, 0]

    wanted = by_hand(output, batch, inside, **several)
    torch.testing.assert_close(why.receptive_field.gradient, wanted, rtol=1e-4, atol=1e-6 * float(wanted.max()))
    alone = ds.explain(thin_rcnn, photo, of="left", min_score=0.0)
    assert torch.equal(alone.layer().points, why.layer().points) and alone.value == why.value


@pytest.mark.parametrize("wrong", [{"copies": -1}, {"copies": 2, "noise": 0.0}, {"noise": float("nan")}])
def test_what_makes_no_copies_is_told(wrong):
    with pytest.raises(ds.DeformscopeError, match=r"copies=-?\d, noise=.*: expected a number of noisy copies"):
        ds.explain(nn.Conv2d(3, 1, 1), torch.rand(1, 3, 4, 4), of=lambda out: out[0, 0, 1, 1], **wrong)
