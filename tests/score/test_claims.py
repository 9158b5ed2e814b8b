"""Hand-built fields with known answers: what condensation and segmentation say of a perfect sink and of noise."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from deformscope import OffsetField
from deformscope.fields.cell_maps import CellMaps, ends, follow, lattice, sample
from deformscope.fields.segments import regions, regions_of
from deformscope.metrics import bootstrap, matching
from deformscope.score import measures, passes
from deformscope.score.measures import Overlaps, Ranked, central_segment, filled_segments, found_segments, measure
from deformscope.score.records import LEVELS, PUBLISHED
from deformscope.score.scenes import Scene, Thing, mark

STRIDE, CELL = 8, 8.0


def sink_field(centres, shape=(24, 34), width=4.0, spread=1.0):
    """d_f points to each centre (cells) within ``width`` cells and ends beyond it; the kernel spreads by ``spread``."""
    h, w = shape
    y, x = torch.meshgrid(torch.arange(h).double(), torch.arange(w).double(), indexing="ij")
    d_f = torch.zeros(h, w, 2, dtype=torch.float64)
    for cy, cx in centres:
        way = torch.stack([cy - y, cx - x], dim=-1)
        d_f += 0.5 * way * torch.exp(-way.square().sum(-1, keepdim=True) / (2 * width**2))
    grid = torch.tensor([[i, j] for i in (-0.5, 0.5) for j in (-1.0, 0.0, 1.0)], dtype=torch.float64)
    offset = d_f[None] + spread * grid[:, None, None]
    return OffsetField(
        offset[None, None],
        kernel_size=(2, 3),
        padding=(0, 1),
        input_size=shape,
        cells=OffsetField.from_tensor(torch.zeros(12, h, w), kernel_size=(2, 3), padding=(0, 1), reduction=CELL).cells,
    )


def scene(things, shape=(24, 34)):
    return Scene(np.zeros((int(shape[0] * CELL), int(shape[1] * CELL), 3), dtype=np.uint8), tuple(things))


def centre_of(field, cell):
    """Photo px (y, x) of an output cell."""
    return field.to_pixels(field.centres())[cell].numpy()


def box_around(y, x, height, width):
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def test_a_perfect_sink_is_found_at_distance_zero_and_everything_points_and_ends_there():
    field = sink_field([(14, 21)])
    y, x = centre_of(field, (14, 21))
    thing = Thing("cat", box_around(y, x, 48.0, 64.0))
    maps, marks = CellMaps.of(field), mark(scene([thing]))
    (found,) = measure([maps], marks, found_segments([maps], marks))
    assert found.image["pointing"] == 1
    assert found.image["auroc"] > 0.99
    things = {name: values[0] for name, values in found.things.items()}
    lattice = np.hypot(2, 2) / np.sqrt(48 * 64)  # places lie 2 px apart
    assert things["sink_distance"] <= lattice
    assert things["cosine"] > 0.97  # the cell at the very centre has no direction
    assert things["moved_distance"] < 0.3  # it began at 0.39 √area on average


def test_divergence_that_is_negative_just_on_the_object_has_iou_one():
    score = np.array([-1.0, 2.0, 0.1, -0.2, -3.0])
    inside = np.array([False, True, True, False, False])
    assert measures.threshold_ious(Ranked.of(score), inside)[PUBLISHED] == 1
    assert measures.pointing(score, inside) == 1


def test_iou_at_every_level_is_that_of_the_chosen_places():
    random = np.random.default_rng(3)
    score, inside = random.normal(0.2, 1, 500), random.random(500) < 0.3
    ranked = Ranked.of(score)
    rms = np.sqrt((score**2).mean())
    for level, iou in zip(LEVELS, measures.threshold_ious(ranked, inside), strict=True):
        chosen = score > level * rms
        assert iou == pytest.approx((chosen & inside).sum() / (chosen | inside).sum())


@pytest.mark.parametrize("digits", [8, 1])  # with one digit most scores are tied
def test_auroc_is_scikit_learns(digits):
    random = np.random.default_rng(1)
    inside = random.random(700) < 0.2
    score = np.round(random.normal(size=700) + inside, digits)
    ranked = Ranked.of(score)
    assert measures.auroc(ranked, inside) == pytest.approx(roc_auc_score(inside, score))
    ring = random.integers(0, 5, 700)
    ring[:3], inside[ring == 4] = 7, False  # one ring of three places, one without any object
    pairs = {n: inside[ring == n].sum() * (~inside[ring == n]).sum() for n in np.unique(ring)}
    each = [w * roc_auc_score(inside[ring == n], score[ring == n]) for n, w in pairs.items() if w]
    assert measures.ring_auroc(ranked, inside, ring) == pytest.approx(sum(each) / sum(pairs.values()))
    nowhere = np.zeros(700, dtype=bool)
    assert np.isnan(measures.auroc(ranked, nowhere))
    assert np.isnan(measures.ring_auroc(ranked, ~nowhere, ring))


def test_at_equal_distance_from_the_centre_the_centre_prior_knows_nothing():
    marks = mark(scene([Thing("cat", box_around(96, 136, 60, 90))]))
    prior = passes.centre((192, 272))
    score = -prior.at(prior.div, marks.points)
    assert measures.auroc(Ranked.of(score), marks.inside) > 0.9
    # What is left is the width of a ring: inside one, an object still lies a little further in.
    by_ring = Ranked.of(-marks.ring.astype(float))
    assert abs(measures.ring_auroc(by_ring, marks.inside, marks.ring) - 0.5) < 1e-9
    assert measures.pointing(score, marks.inside) == 1
    assert measures.ring_chance(score, marks.inside, marks.ring) > 0.98  # the innermost ring is all object


def test_no_offsets_give_what_chance_gives():
    marks = mark(scene([Thing("cat", box_around(60, 80, 60, 90))]))
    maps = passes.zero((192, 272))
    (found,) = measure([maps], marks, found_segments([maps], marks))
    image, share = found.image, marks.inside.mean()
    assert image["auroc"] == image["auroc_ring"] == 0.5
    assert image["pointing"] == pytest.approx(share, rel=1e-4)
    assert image["pointing_ring"] == pytest.approx(0, abs=1e-6)
    assert found.things["cosine"] == (0,)
    assert found.segments.scores == ()
    # The mean distance of a box's places from its centre, h/w = 2/3, in √area.
    assert found.things["sink_distance"][0] == pytest.approx(0.3925, abs=0.01)


def test_noise_is_at_chance_within_its_interval():
    random = np.random.default_rng(5)
    auroc, over = [], []
    for _ in range(80):
        maps = CellMaps.of(sink_field([]))
        field = random.normal(size=(24, 34, 2))
        div = np.gradient(field[..., 0], axis=0) + np.gradient(field[..., 1], axis=1)
        maps = CellMaps(field, div, maps.height, maps.width, maps.origin, maps.step, maps.regular)
        y, x = random.uniform(40, 150), random.uniform(50, 220)
        marks = mark(scene([Thing("cat", box_around(y, x, *random.uniform(30, 120, 2)))]))
        found = measure([maps], marks, [None])[0].image
        auroc.append(found["auroc"])
        over.append(found["pointing_ring"])
    weights = bootstrap.draws(80, 500)
    low, high = bootstrap.interval(bootstrap.mean(np.array(auroc), weights)[1:])
    assert low < 0.5 < high
    assert high - low < 0.1
    low, high = bootstrap.interval(bootstrap.mean(np.array(over), weights)[1:])
    assert low < 0 < high


def test_following_the_flow_ends_in_its_sink_and_stays_on_the_map():
    field = sink_field([(5, 9), (18, 26)], width=5.0)
    found = ends([CellMaps.of(field)], np.array([[6.0, 8.0], [17.0, 29.0]]))[0]
    assert np.abs(found - [(5, 9), (18, 26)]).max() < 0.05
    away = np.full((5, 7, 2), 3.0)
    assert follow(away, np.array([[0.0, 0.0], [2.0, 6.0]])).tolist() == [[4.0, 6.0], [4.0, 6.0]]


def test_a_flow_that_leaps_over_its_sink_still_settles():
    y = np.arange(9.0)[:, None, None] * np.ones((1, 5, 1))
    leaping = np.concatenate([-2.2 * (y - 4), np.zeros_like(y)], axis=-1)
    assert np.abs(follow(leaping, np.array([[0.3, 2.0]]))[0] - (4, 2)).max() < 0.01


def test_following_is_that_of_a_slow_loop_and_the_same_together_and_alone():
    random = np.random.default_rng(6)
    flows = random.normal(0, 1.5, (2, 5, 7, 2))
    starts = lattice((5, 7), 2).reshape(-1, 2)
    together = follow(flows, starts)
    for flow, found in zip(flows, together, strict=True):
        assert np.array_equal(follow(flow, starts), found)
        for start, end in zip(starts, found, strict=True):
            at = np.clip(start, 0, (4, 6))
            for _ in range(64):
                step = 0.6 * flow
                step *= np.minimum(1, 0.6 / np.maximum(np.linalg.norm(step, axis=-1, keepdims=True), 1e-12))
                before, move = at, [sample(step[..., axis], at[None])[0] for axis in (0, 1)]
                at = np.clip(at + move, 0, (4, 6))
                if np.abs(at - before).sum() <= 5e-3:
                    break
            assert end == pytest.approx(at, abs=1e-6)


def test_maps_measured_together_are_measured_as_each_alone():
    maps = [CellMaps.of(sink_field(centres)) for centres in ([(14, 21)], [(5, 9), (18, 26)], [])]
    things = [Thing("cat", box_around(112, 168, 48, 64)), Thing("dog", box_around(40, 72, 40, 40), None, True)]
    marks = mark(scene([*things, Thing("ant", box_around(60.9, 200.9, 1, 1))]))
    assert not marks.on[1].any()  # the ant is smaller than the lattice
    found = regions_of(maps)
    for one, same in zip(maps, found, strict=True):
        assert np.array_equal(regions(one).labels, same.labels)
    together = measure(maps, marks, found_segments(maps, marks))
    alone = [measure([one], marks, found_segments([one], marks))[0] for one in maps]
    np.testing.assert_equal([asdict(one) for one in together], [asdict(one) for one in alone])
    assert np.isnan(together[0].things["sink_distance"][1])
    assert together[0].things["r_largest"][1] > 0


def test_segments_overlap_objects_as_their_masks_do():
    random = np.random.default_rng(8)
    maps = CellMaps.of(sink_field([(5, 9), (14, 21)]))
    things = [Thing("cat", box_around(112, 168, 70, 90)), Thing("dog", box_around(40, 72, 60, 60), None, True)]
    marks = mark(scene(things))
    corners = random.uniform(0, 150, (6, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 120, (6, 2))], axis=1)
    y, x = marks.points.T
    inside = np.array([(x >= a) & (y >= b) & (x < c) & (y < d) for a, b, c, d in boxes])
    labels = regions(maps).at(maps.to_cells(marks.points))
    prior = passes.centre((192, 272))
    masks = {
        "filled": (filled_segments(marks, boxes, random.random(6)), inside),
        "found": (found_segments([maps], marks)[0], labels == np.arange(1, labels.max() + 1)[:, None]),
        "central": (central_segment(prior, marks), (prior.at(prior.div, marks.points) < 0)[None]),
    }
    for overlaps, places in masks.values():
        expected = matching.mask_iou(places, marks.objects, marks.are_ignored)
        assert expected.max() > 0
        assert overlaps.iou == pytest.approx(expected)
        assert np.array_equal(overlaps.first, places[0])
    nothing = filled_segments(marks, np.zeros((0, 4)), np.zeros(0))
    assert isinstance(nothing, Overlaps)
    assert nothing.iou.shape == (0, 2)


def test_a_photo_on_which_no_place_counts_has_no_figures():
    crowd, ant = Thing("cat", (0, 0, 272, 192), None, True), Thing("ant", box_around(60.9, 200.9, 1, 1))
    marks, maps = mark(scene([crowd, ant])), CellMaps.of(sink_field([(14, 21)]))
    assert not marks.valid.any()
    (found,) = measure([maps], marks, found_segments([maps], marks))
    assert np.isnan([found.image[name] for name in ("auroc", "pointing")]).all()
    assert np.isnan(found.iou).all()


def test_an_object_between_the_cells_is_given_the_nearest():
    field = sink_field([(14, 21)])
    y, x = centre_of(field, (3, 3)) + 3.5
    maps = CellMaps.of(field)
    on = measures.cells_on(maps, Thing("cat", box_around(y, x, 2, 2)))
    assert np.argwhere(on).tolist() == [[3, 3]]


def test_maps_leave_out_cells_beside_the_photo():
    from deformscope import Placement

    field = sink_field([(14, 21)])
    from dataclasses import replace

    small = replace(field, placements=(Placement((100, 150)),))
    maps = CellMaps.of(small)
    centres = maps.centres()
    assert centres.shape == (13, 20, 2)  # 8 px a cell, and half a cell beyond the edge still counts
    assert maps.div.shape == maps.radius.shape == (13, 20)


def test_largest_region_gives_the_box():
    chosen = np.zeros((12, 16), dtype=bool)
    chosen[2:8, 3:12] = True
    chosen[10, 14] = True
    y, x = np.meshgrid(np.arange(12) * 4 + 2.0, np.arange(16) * 4 + 2.0, indexing="ij")
    box = measures.largest_box(chosen, np.stack([y, x], axis=-1))
    assert box == (12.0, 8.0, 48.0, 32.0)
