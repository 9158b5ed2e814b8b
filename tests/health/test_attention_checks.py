"""Faults of deformable attention are found, each by its own planted layer, and a healthy one is left in peace."""

import math

import pytest
import queries_network
import torch

import deformscope
from deformscope.fields.attention import AttentionField, levels_of
from deformscope.health.attention_checks import attention_findings, beyond, in_cells
from deformscope.health.diagnose import attention_health

SIZES, INPUT, COUNTS = ((6, 9), (3, 5)), (48, 80), [3, 2]
QUERIES, HEADS, POINTS = 40, 4, 5


def layer(boxes=True, seed=0, **changes) -> AttentionField:
    """Random boxes on the input, and points up to about one half box from their centres."""
    random = torch.Generator().manual_seed(seed)
    centre = (torch.rand(2, QUERIES, 2, generator=random) * 0.6 + 0.2) * torch.tensor(INPUT)
    size = torch.rand(2, QUERIES, 2, generator=random) * 14 + 4
    reference = (torch.cat([centre, size], dim=2) if boxes else centre)[:, :, None].expand(-1, -1, 2, -1)
    relative = torch.randn(2, QUERIES, HEADS, POINTS, 2, generator=random) * 0.6
    weights = torch.randn(2, QUERIES, HEADS, POINTS, generator=random).softmax(-1)
    parts = {"relative": relative, "weights": weights} | changes
    unit = size[:, :, None, None] / 2 if boxes else (torch.tensor(INPUT) / torch.tensor(SIZES))[levels_of(COUNTS)]
    points = centre[:, :, None, None] + parts.pop("relative") * unit
    return AttentionField(points, parts["weights"], reference, levels_of(COUNTS), SIZES, INPUT, name="layer")


def directions(lengths: torch.Tensor) -> torch.Tensor:
    """Points along their head's initial direction, (y, x)."""
    angle = torch.arange(HEADS) * 2 * math.pi / HEADS
    return torch.stack([angle.sin(), angle.cos()], dim=-1)[:, None] * lengths[..., None]


def steps(*shape, seed=3) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.2


ones = torch.ones(2, QUERIES, HEADS, POINTS)
one_hot = torch.zeros(2, QUERIES, HEADS, POINTS).index_fill_(3, torch.tensor([1]), 1.0)
FAULTS = {
    "constant": {"relative": steps(HEADS, POINTS, 2).expand(2, QUERIES, -1, -1, -1)},
    "initial": {"relative": directions(steps(2, QUERIES, HEADS, POINTS))},
    "equal weights": {"weights": ones / POINTS},
    "saturated": {"weights": one_hot},
    "unused": {"weights": torch.cat([ones[..., :3], 1e-4 * ones[..., 3:]], dim=3) / 3},
    "blind heads": {
        "relative": torch.cat(
            [steps(2, QUERIES, 1, POINTS, 2) * 60, steps(2, QUERIES, HEADS - 1, POINTS, 2) - 0.7], dim=2
        )
    },
    "exploding": {"relative": steps(2, QUERIES, HEADS, POINTS, 2) * 60},
}


@pytest.mark.parametrize("boxes", [True, False])
def test_a_healthy_layer_has_no_findings(boxes):
    assert attention_findings("layer", [layer(boxes), layer(boxes, seed=1)]) == ()


@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize("ailment", FAULTS)
def test_a_planted_fault_is_found(ailment, boxes):
    random = torch.Generator().manual_seed(9)
    usual = {"weights": torch.randn(2, QUERIES, HEADS, POINTS, generator=random).softmax(-1)}
    found = attention_findings("layer", [layer(boxes, **usual | FAULTS[ailment])])
    names = {finding.ailment for finding in found}
    assert ailment in names
    assert names <= {ailment, *({"unused"} if ailment == "saturated" else set())}


def test_the_initialisation_is_named():
    lengths = torch.arange(1, POINTS + 1).float().expand(HEADS, -1) / POINTS
    still = layer(relative=directions(lengths).expand(2, QUERIES, -1, -1, -1), weights=ones / POINTS)
    found = attention_findings("layer", [still])
    assert [finding.ailment for finding in found] == ["constant", "equal weights"]
    assert "those of the initialisation" in found[0].evidence


@pytest.mark.parametrize("part", ["points", "weights"])
def test_what_is_no_number_is_told_alone(part):
    field = layer()
    spoilt = getattr(field, part).clone()
    spoilt[0, 3, 1, 2] = math.nan
    broken = AttentionField(**vars(field) | {part: spoilt})
    (finding,) = attention_findings("layer", [layer(seed=2), broken])
    assert (finding.ailment, finding.verdict) == ("non-finite", "broken")
    assert attention_health("layer", [broken]).verdict == "broken"


def test_lengths_count_cells_of_the_points_own_map():
    reference = torch.tensor([24.0, 40.0]).expand(1, 1, 2, 2)
    moved = torch.tensor([[8.0, 0.0], [0.0, 16.0]])  # a cell of the first map is 8 × 80/9 px, of the second 16 × 16
    points = (reference[0, 0, 0] + moved)[None, None, None]
    field = AttentionField(points, None, reference, torch.tensor([0, 1]), SIZES, INPUT)
    torch.testing.assert_close(in_cells(field)[0, 0, 0], torch.tensor([1.0, 1.0]))


def test_a_point_reads_nothing_from_half_a_cell_beyond_the_map():
    reference = torch.tensor([24.0, 40.0]).expand(1, 1, 2, 2)
    points = torch.tensor([[-3.9, 40.0], [-4.1, 40.0], [24.0, 80 + 7.9], [24.0, 80 + 8.1]])[None, None, None]
    field = AttentionField(points, None, reference, torch.tensor([0, 0, 1, 1]), SIZES, INPUT)
    assert beyond(field).flatten().tolist() == [0, 1, 0, 1]


def test_diagnose_sees_the_attention_of_a_detector_and_of_a_module():
    photo = torch.randint(0, 255, (3, 60, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = deformscope.diagnose(queries_network.detector(), photo)
    assert [one.layer for one in found.layers] == ["net.encoder", "net.decoder.0", "net.decoder.1"]
    assert found.layers[0].map_size == (6, 10) and found.layers[0].median > 0
    network = queries_network.Queries()
    network.decoder[1].sampling_offsets.weight.data.zero_()
    found = deformscope.diagnose(network, torch.rand(2, 3, *queries_network.SIDES))
    ailing = {finding.layer: finding.ailment for finding in found.findings if finding.ailment == "constant"}
    assert ailing == {"decoder.1": "constant"} and found.broken
    assert "decoder.1" in str(found) and "sampling_offsets" in str(found)
