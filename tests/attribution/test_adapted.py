"""Detections of users' own networks are explained by their number, through the decode that they give."""

import numpy as np
import pytest
import queries_network
import torch
from torch import nn
from torchvision.ops import DeformConv2d

import deformscope
from deformscope import DeformscopeError
from deformscope.fields.field import Placement

PHOTO = np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)


def test_a_score_is_the_log_odds_of_the_network_and_a_side_is_that_of_its_box():
    detector = queries_network.detector()
    found = detector(PHOTO, min_score=0.05)[0]
    query, label = int(found["query"][1]), int(found["labels"][1])
    batch = queries_network.prepare([PHOTO])
    by_number = deformscope.explain(detector, PHOTO, 1)
    by_function = deformscope.explain(detector.net, batch, of=lambda output: output["logits"][0, query, label])
    assert by_number.value == pytest.approx(by_function.value, rel=1e-4)
    assert by_number.label == detector.class_names[label]
    assert list(by_number.attention) == [f"net.{name}" for name in by_function.attention]
    for name, layer in by_function.attention.items():
        torch.testing.assert_close(by_number.attention[f"net.{name}"].points, layer.points, atol=1e-6, rtol=1e-3)
    gradient = by_number.receptive_field.gradient
    torch.testing.assert_close(gradient, by_function.receptive_field.gradient, atol=1e-6, rtol=1e-3)
    side = deformscope.explain(detector, PHOTO, 1, of="right")

    def corner(output):
        return output["boxes"][0, query, 0] + output["boxes"][0, query, 2] / 2

    wanted = deformscope.explain(detector.net, batch, of=corner)
    assert side.value == pytest.approx(wanted.value * 130, rel=1e-4)  # the network sees the photo from edge to edge
    assert not {"logits", "unclipped"} & set(found)


def test_a_detection_is_found_again_in_a_changed_photo():
    detector = queries_network.detector()
    batch, placements = detector.prepare([PHOTO])
    found = detector.detect(batch, placements)[0]
    again = detector.repredict(batch, placements[0], {key: value[2:4] for key, value in found.items()})
    for key in ("scores", "query", "logits", "unclipped"):
        torch.testing.assert_close(again[key], found[key][2:4])
    noisy = batch + 0.02 * torch.randn(batch.shape, generator=torch.Generator().manual_seed(0))
    again = detector.repredict(noisy, placements[0], found)
    assert again["query"].tolist() == found["query"].tolist()
    assert not torch.equal(again["logits"], found["logits"]) and again["logits"].requires_grad


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.offsets = nn.Conv2d(3, 4, 8, stride=8), nn.Conv2d(4, 18, 3, padding=1)
        self.deform = DeformConv2d(4, 4, 3, padding=1)

    def forward(self, images):
        seen = self.stem(images)
        return self.deform(seen, self.offsets(seen)).flatten(2).mean(2)


def toy(change=lambda one: one, batch=lambda one: one, **settings):
    """Detects one box with one class, unless told otherwise."""

    def decode(output, images):
        size = torch.tensor([images.shape[-1], images.shape[-2]] * 2)
        return [change({"boxes": row[None].sigmoid() * size, "scores": row[:1].sigmoid()}) for row in output]

    def prepare(photos):
        images = torch.stack([torch.from_numpy(photo[:80, :128].copy()).permute(2, 0, 1) / 255 for photo in photos])
        return batch(images), [Placement((90, 130))] * len(photos)

    return deformscope.adapt(Toy(), prepare=prepare, decode=decode, class_names=("cat",), name="toy", **settings)


def test_deformable_convolutions_of_a_users_network_are_explained():
    why = deformscope.explain(toy(), PHOTO)
    assert list(why.layers) == ["net.deform"]
    images = toy().prepare([PHOTO])[0]
    plain = deformscope.explain(Toy(), images, of=lambda output: output[0, 0])
    assert why.value == pytest.approx(plain.value, rel=1e-4)
    torch.testing.assert_close(why.layers["net.deform"].points, plain.layers["deform"].points, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(
    ("detector", "of", "said"),
    [
        (toy(lambda one: {key: value.detach() for key, value in one.items()}), "score", "no gradient path back"),
        (toy(lambda one: {key: value.detach().numpy() for key, value in one.items()}), "left", "no gradient path back"),
        (toy(lambda one: one | {"scores": one["scores"] * 9}), "score", "doesn't tell what gave its detections"),
        (toy(lambda one: {}), "score", "nothing on this photo scores so high"),
        (toy(batch=lambda images: (images * 255).byte()), "score", "toy: its prepare makes a batch of torch.uint8"),
    ],
)
def test_what_cannot_be_explained_is_one_line(detector, of, said):
    with pytest.raises(DeformscopeError, match=said) as error:
        deformscope.explain(detector, PHOTO, of=of)
    assert "\n" not in str(error.value)


def test_a_detection_that_is_gone_is_one_line():
    detector = toy(lambda one: {key: value[one["scores"] > 0.5] for key, value in one.items()})
    batch, placements = detector.prepare([PHOTO])
    kept = {"boxes": torch.ones(1, 4), "unclipped": torch.ones(1, 4), "labels": torch.zeros(1), "scores": torch.ones(1)}
    with torch.no_grad():
        detector.net.deform.bias[0] = -50.0
    with pytest.raises(DeformscopeError, match="toy: decode: gave no detection where there was one before"):
        detector.repredict(batch, placements[0], kept)
