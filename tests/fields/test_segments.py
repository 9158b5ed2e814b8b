"""Objects out of offsets: one region a sink, where it converges, as far as the circle reaches."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.feature import peak_local_max

from deformscope import DeformscopeError, OffsetField
from deformscope.fields.cell_maps import CellMaps
from deformscope.fields.segments import _spaced, regions, regions_of, segments


def field_of(sinks, shape=(24, 34), reduction=8.0, groups=1):
    """d_f points to each (y, x, width) in cells, out to about its width; the kernel's extent grows with it."""
    h, w = shape
    y, x = torch.meshgrid(torch.arange(h).float(), torch.arange(w).float(), indexing="ij")
    offset = torch.zeros(9, 2, h, w)
    grid = torch.tensor([[i, j] for i in (-1.0, 0.0, 1.0) for j in (-1.0, 0.0, 1.0)])
    for cy, cx, width in sinks:
        way = torch.stack([cy - y, cx - x])
        near = torch.exp(-way.square().sum(0) / (2 * width**2))
        offset += 0.6 * way * near + 0.5 * width * near * grid[:, :, None, None]
    several = torch.cat([offset.flatten(0, 1)] + [torch.zeros(18, h, w)] * (groups - 1))
    return OffsetField.from_tensor(several, kernel_size=3, offset_groups=groups, reduction=reduction, name="layer")


def test_two_sinks_give_two_regions_around_them_and_the_wider_one_is_the_larger():
    field = field_of([(7, 8, 2.0), (15, 24, 4.0)])
    found = segments(field)
    assert len(found.scores) == 2
    assert found.scores[0] > found.scores[1] > 0
    expected = field.to_pixels(torch.tensor([[15.0, 24.0], [7.0, 8.0]])).numpy()
    assert np.abs(found.sinks - expected).max() < 4  # half a cell
    # div < 0 where r < √2 · width; the kernel's reach lies beyond that.
    for mask, (y, x), width in zip(found.masks, expected, (4.0, 2.0), strict=True):
        rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
        disc = np.hypot(rows - y, columns - x) < np.sqrt(2) * width * 8
        assert (mask & disc).sum() / (mask | disc).sum() > 0.75
    assert found.sizes[0] == pytest.approx([(2 + 4.0) * 8] * 2, rel=0.1)
    assert found.sizes[1] == pytest.approx([(2 + 2.0) * 8] * 2, rel=0.1)


def test_boxes_hold_their_masks_and_labels_are_theirs():
    found = segments(field_of([(7, 8, 2.0), (15, 24, 4.0)]))
    assert found.labels.shape == (192, 272)
    for mask, (x0, y0, x1, y1) in zip(found.masks, found.boxes, strict=True):
        y, x = np.nonzero(mask)
        assert (x.min(), y.min(), x.max() + 1, y.max() + 1) == (x0, y0, x1, y1)
    assert (found.masks.sum(axis=0) == (found.labels > 0)).all()


def test_a_field_that_does_not_converge_has_no_regions():
    still = field_of([])
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(34.0), indexing="ij")
    outward = torch.stack([y - 9, x - 14])[None] * 0.2 + torch.zeros(9, 1, 1, 1)
    drift = torch.ones(9, 2, 24, 34) * 0.7
    for field in (still, *(OffsetField.from_tensor(one.flatten(0, 1), reduction=8.0) for one in (outward, drift))):
        found = segments(field)
        assert len(found.scores) == 0
        assert found.labels.shape == field.placement().size
    assert segments(field_of([])).boxes.shape == (0, 4)


def test_a_region_moves_with_its_sink():
    here, there = segments(field_of([(9, 9, 3.0)])), segments(field_of([(12, 14, 3.0)]))
    assert there.sinks - here.sinks == pytest.approx(np.array([[24.0, 40.0]]))
    moved = np.roll(here.labels, (24, 40), axis=(0, 1))
    assert (moved == there.labels).mean() > 0.995


def test_groups_are_grown_apart_and_what_is_not_there_is_refused():
    field = field_of([(9, 9, 3.0)], groups=2)
    assert len(segments(field, 0).scores) == 1
    assert len(segments(field, 1).scores) == 0
    with pytest.raises(DeformscopeError, match="group=2"):
        segments(field, 2)
    two = OffsetField.from_tensor(torch.zeros(2, 18, 5, 7), kernel_size=3)
    with pytest.raises(DeformscopeError, match="2 images"):
        segments(two)


def test_peaks_keep_the_distance_that_scikit_image_keeps():
    random = np.random.default_rng(4)
    for _ in range(30):
        density = random.integers(0, 4, (30, 40)).astype(float)  # plateaus everywhere
        window = np.ones((7, 7))
        peaks = peak_local_max(density, footprint=window, threshold_abs=1.5, exclude_border=False)
        expected = peak_local_max(density, min_distance=3, threshold_abs=1.5, exclude_border=False)
        assert len(expected) < len(peaks)
        assert np.array_equal(_spaced(peaks, 3), expected)


def test_thousands_of_equal_peaks_take_no_memory_of_all_their_pairs():
    y, x = np.mgrid[:128, :128]
    everywhere = np.stack([y.ravel(), x.ravel()], axis=1)[::2]
    tracemalloc.start()
    try:
        kept = _spaced(everywhere, 4)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20  # all pairs: 1 GB
    finally:
        tracemalloc.stop()
    assert len(kept) == (128 // 4) ** 2


def test_regions_are_drawn_over_the_photo():
    from deformscope.draw import segments as draw

    photo = np.full((192, 272, 3), 200, dtype=np.uint8)
    figure = draw([field_of([(7, 8, 2.0), (15, 24, 4.0)]), field_of([])], photo)
    veil = figure.axes[0].images[1].get_array()
    assert (veil[..., 3] > 0).sum() == (segments(field_of([(7, 8, 2.0), (15, 24, 4.0)])).labels > 0).sum()
    assert figure.axes[1].images[1].get_array()[..., 3].max() == 0
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "1" in texts
    assert "2" in texts


def test_regions_of_several_maps_are_those_of_each_also_where_kernels_differ():
    fields = [field_of([(7, 8, 2.0), (15, 24, 4.0)]), field_of([]), field_of([(12, 17, 3.0)])]
    maps = [CellMaps.of(field) for field in fields]
    small = replace(maps[2], height=0 * maps[2].height, width=0 * maps[2].width, regular=(0.0, 4.0))
    maps, wide = [*maps[:2], small], maps[2]
    together = regions_of(maps)
    assert [len(one.scores) for one in together] == [2, 0, 1]
    for found, one in zip(together, maps, strict=True):
        alone = regions(one)
        assert np.array_equal(found.labels, alone.labels)
        assert np.array_equal(found.scores, alone.scores)
        assert np.array_equal(found.sinks, alone.sinks)
    assert 0 < (together[2].labels > 0).sum() < (regions(wide).labels > 0).sum() / 2
