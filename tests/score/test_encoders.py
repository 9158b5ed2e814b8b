"""Networks of others are measured as the detectors here: their convolutions, and the levels of their encoders."""

import json

import numpy as np
import pytest
import queries_network
import torch
from torch import nn
from torchvision.ops import DeformConv2d

import deformscope
from deformscope import DeformscopeError
from deformscope.draw.batch import chosen_layers
from deformscope.fields.attention_start import fresh
from deformscope.fields.cell_maps import CellMaps
from deformscope.fields.moments import encoder_fields
from deformscope.score import Settings, score, write_report
from deformscope.score.passes import look, probe
from deformscope.score.records import read_records

LEVELS = ["net.encoder[level 0]", "net.encoder[level 1]"]
PHOTO = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)


class Own(nn.Module):
    """Two deformable convolutions, whose offsets come from a convolution and from no module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.offsets = nn.Conv2d(8, 18, 3, padding=1)
        self.free = nn.Parameter(torch.randn(18, 8))
        self.first, self.second = DeformConv2d(8, 8, 3, padding=1), DeformConv2d(8, 8, 3, padding=1)

    def forward(self, images):
        seen = self.stem(images).relu()
        seen = self.first(seen, self.offsets(seen) * 4)
        return self.second(seen, (self.free @ seen.flatten(2)).unflatten(2, seen.shape[-2:]))


def own():
    return deformscope.adapt(Own(), name="own")


def test_an_encoders_levels_are_measured_against_all_nulls(folder, tmp_path):
    detector, out = queries_network.detector(), tmp_path / "out"
    scores = score(detector, folder, out, Settings(draws=40, max_photos=6))
    assert {row.layer for row in scores.part("whole").rows} == set(LEVELS)
    assert [field.name for field in chosen_layers(deformscope.analyse(detector, PHOTO), ()).layers] == LEVELS
    row = next(row for row in scores.part("whole").rows if row.metric.name == "auroc")
    assert set(row.sources) == {"field", "fresh", "shuffled", "noise", "centre", "zero", "filled"}
    # Fresh attention moves all cells alike: its divergence is zero, and its circles are all of one size.
    assert row.sources["fresh"].value == 0.5 != row.sources["field"].value
    assert write_report(scores, out).read_text().count("data:image/jpeg;base64,") > 0  # figures of photos


def test_what_is_measured_of_an_encoder_is_what_figures_show(folder):
    detector = queries_network.detector()
    seen = look(detector, PHOTO, fresh=True)
    (attention,) = [one for one in deformscope.analyse(detector, PHOTO).fields.attention.values() if one.is_dense]
    for maps, of in ((seen.maps, attention), (seen.fresh, fresh(attention))):
        assert list(maps) == LEVELS
        for field in encoder_fields(of):
            wanted = CellMaps.of(field)
            for key in ("d_f", "div", "height", "width"):
                np.testing.assert_allclose(getattr(maps[field.name], key), getattr(wanted, key), atol=1e-4)
    assert not any(maps.div.any() for maps in seen.fresh.values())
    assert list(look(detector, PHOTO, ["net.encoder[level 1]"]).maps) == LEVELS[1:]


def test_a_run_on_attention_that_was_killed_goes_on_and_ends_with_the_same_records(folder, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    score(queries_network.detector(), folder, whole, Settings(draws=40, max_photos=3))
    score(queries_network.detector(), folder, part, Settings(draws=40, max_photos=1))
    seen = []
    score(
        queries_network.detector(),
        folder,
        part,
        Settings(draws=40, max_photos=3, workers=1),
        progress=lambda state: seen.append(state.done),
    )
    assert seen == [1, 2, 3]
    # As text, in which NaN equals NaN.
    records = [{one.index: one.line() for one in read_records(path)} for path in (whole, part)]
    assert records[0] == records[1] and len(records[0]) == 3
    with pytest.raises(DeformscopeError, match="its tensors differ"):
        score(queries_network.detector(seed=1), folder, part, Settings(draws=40, max_photos=3))


def test_offsets_that_no_convolution_makes_have_no_fresh_null(folder, tmp_path):
    found = probe(own())
    assert found.convolutions == ("net.offsets",) and found.others == {"net.second"}
    scores = score(own(), folder, tmp_path / "own", Settings(draws=40, max_photos=4, crops=False))
    rows = {row.layer: set(row.sources) for row in scores.part("whole").rows if row.metric.name == "auroc"}
    assert rows["net.first"] == rows["net.second"] | {"fresh"} and "fresh" not in rows["net.second"]
    records = [one for one in read_records(tmp_path / "own") if one.status == "scored"]
    for one in records:
        first = one.views["whole"].layers["net.first"]
        assert first["fresh"].image["auroc"] != first["field"].image["auroc"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(layers=("net.decoder*",)), r"queries: has only object queries \(net\.decoder\.0, net\.decoder\.1\)"),
        (Settings(layers=("nothing",)), "no deformable call named 'nothing'"),
        (Settings(composed=True), "composed=True: queries has attention"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is_written(settings, said, folder, tmp_path):
    with pytest.raises(DeformscopeError, match=said):
        score(queries_network.detector(), folder, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
    assert json.loads((folder / "annotations" / "instances_val.json").read_text())["images"]
