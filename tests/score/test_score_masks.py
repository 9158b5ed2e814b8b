"""Masks that need no training, and a detector's own: planted objects have known scores, and errors come first."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from deformscope import Analysis
from deformscope.detectors import box_masks
from deformscope.errors import DeformscopeError
from deformscope.score import MaskSettings, Settings, measure_masks, read_masks, read_scores, score, write_report
from deformscope.score.mask_scores import BARS

QUICK = MaskSettings(draws=40, segments=False)


class Planted(torch.nn.Module):
    """Detects the bright ellipses of :func:`photos` by their exact boxes; ``masks``: with perfect masks."""

    class_names = ("dog", "cat")
    name = "planted"

    def __init__(self, masks=False, shift=0):
        super().__init__()
        self.masks, self.shift = masks, shift

    def forward(self, photo, **settings):
        bright = photo[..., 0] > 128
        rows, columns = np.nonzero(bright)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        found = {
            "boxes": torch.tensor([box, [0, 0, 9, 9]]).float() + self.shift,
            "labels": torch.tensor([int(photo[0, 0, 2] > 0), 0]),
            "scores": torch.tensor([0.9, 0.3]),
        }
        if self.masks:
            found["masks"] = torch.from_numpy(np.stack([bright, np.zeros_like(bright)]))
        return [found]


def photos(root, count=6, masks=True):
    """One ellipse a photo, white on dark, odd photos a cat and even ones a dog; the last photo has a crowd as well."""
    (root / "annotations").mkdir(parents=True)
    (root / "val").mkdir()
    images, annotations = [], []
    for number in range(count):
        h, w = 80, 100
        mask = box_masks.ellipse((20 + number, 15, 80, 60 + number), (h, w))
        photo = np.zeros((h, w, 3), np.uint8) + np.uint8(20)
        photo[..., 2] = 200 * (number % 2)
        photo[mask] = 250
        photo[0, 0, 2] = number % 2
        rows, columns = np.nonzero(mask)
        x, y = int(columns.min()), int(rows.min())
        box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
        one = {"id": number + 1, "image_id": number, "category_id": number % 2 + 1, "bbox": box, "iscrowd": 0}
        one["area"] = int(mask.sum())
        if masks:
            runs = np.diff(np.flatnonzero(np.diff(np.r_[2, mask.T.ravel().astype(int), 2])))
            one["segmentation"] = {"size": [h, w], "counts": [0, *runs.tolist()] if mask[0, 0] else runs.tolist()}
        annotations.append(one)
        Image.fromarray(photo).save(root / "val" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": h, "width": w})
    crowd = {"id": 99, "image_id": count - 1, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1, "area": 81}
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    content = {"images": images, "annotations": [*annotations, crowd], "categories": categories}
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return root


def test_a_filled_box_covers_pi_quarters_and_an_ellipse_its_box():
    box, size = (10.0, 20.0, 90.0, 60.0), (80, 120)
    full, round_ = box_masks.filled(box, size), box_masks.ellipse(box, size)
    assert full.sum() == 3200 and (round_ & ~full).sum() == 0
    assert round_.sum() / full.sum() == pytest.approx(np.pi / 4, abs=0.01)


def test_grab_cut_finds_a_bright_object_and_gives_the_ellipse_where_it_finds_nothing():
    photo = np.zeros((60, 80, 3), np.uint8)
    photo[22:40, 31:60] = 255
    found = box_masks.grab_cut(photo, (25, 15, 65, 45))
    assert np.array_equal(found, photo[..., 0] > 0)
    assert np.array_equal(found, box_masks.grab_cut(photo, (25, 15, 65, 45)))  # every time
    plain = np.full((60, 80, 3), 90, np.uint8)
    assert np.array_equal(box_masks.grab_cut(plain, (25, 15, 65, 45)), box_masks.ellipse((25, 15, 65, 45), (60, 80)))
    for box in ((0, 0, 80, 60), (10.2, 10.2, 10.4, 10.4), (79.5, 59.5, 80, 60), (5, 5, 7, 6)):
        assert box_masks.grab_cut(photo, box).shape == (60, 80)


def test_planted_ellipses_are_what_the_ellipse_finds_and_the_box_does_not(tmp_path):
    data = photos(tmp_path / "data")
    scores = measure_masks(Planted(masks=True), data, tmp_path / "out", QUICK)
    assert (scores.photos, scores.objects, scores.classes) == (6, 6, ("dog", "cat"))
    assert scores.row("boxes").values["ap"].value == pytest.approx(100)
    assert scores.row("masks").values["ap"].value == pytest.approx(100)
    assert scores.row("ellipse").values["ap75"].value == pytest.approx(100)
    assert scores.row("grabcut").values["iou"].value > 0.97
    filled = scores.row("filled")
    assert filled.values["ap50"].value == pytest.approx(100) and filled.values["iou"].value == pytest.approx(
        0.78, abs=0.02
    )
    assert filled.values["true_iou"].value == pytest.approx(filled.values["iou"].value)
    # IoU .78 is reached at six of the ten thresholds, in each photo and so in each sample.
    gain = scores.row("masks").gains["filled"]["ap"]
    assert (gain.value, gain.low, gain.high) == pytest.approx((40, 40, 40))
    text = (tmp_path / "out/masks.md").read_text()
    assert all(name in text for name in BARS.values()) and "the detector's masks" in text
    numbers = json.loads((tmp_path / "out/masks.json").read_text())
    assert [row["source"] for row in numbers["rows"]][:3] == ["boxes", "filled", "ellipse"]


def test_classes_of_another_name_are_the_same(tmp_path):
    detector = Planted(masks=True)
    detector.class_names = ("Dog", "cat")
    scores = measure_masks(detector, photos(tmp_path / "data"), tmp_path / "out", replace(QUICK, grabcut=False))
    assert scores.classes == ("dog", "cat") and scores.row("masks").values["ap"].value == pytest.approx(100)


def test_objects_that_no_detection_finds_count_for_ap_and_not_for_iou(tmp_path):
    data = photos(tmp_path / "data")
    scores = measure_masks(Planted(masks=True, shift=60), data, tmp_path / "out", QUICK)
    assert scores.row("filled").values["ap"].value == 0
    assert "iou" not in scores.row("filled").values and scores.row("filled").values["true_iou"].value > 0.7


def test_a_run_goes_on_and_other_masks_are_refused(tmp_path):
    data, out = photos(tmp_path / "data"), tmp_path / "out"
    whole = measure_masks(Planted(), data, out, QUICK).to_json()
    lines = (out / "masks.jsonl").read_text().splitlines(keepends=True)
    (out / "masks.jsonl").write_text("".join(lines[:3]) + lines[3][:40])
    seen = []
    again = measure_masks(Planted(), data, out, QUICK, progress=lambda done, total: seen.append((done, total)))
    assert again.to_json() == whole and seen[-1] == (6, 6)
    with pytest.raises(DeformscopeError, match="masks of another run"):
        measure_masks(Planted(), data, out, MaskSettings(draws=40, segments=False, detections=3))


def test_segments_of_offsets_are_compared_without_classes(tmp_path, small):
    scores = measure_masks(small, photos(tmp_path / "data", 3), tmp_path / "out", MaskSettings(draws=40, grabcut=False))
    row = scores.row("segments heads.stride8.deform")
    assert set(row.values) == {"any_ap", "any_ap50"} and "any_ap" in row.gains["filled"]
    assert not any(row.source.startswith("grabcut") for row in scores.rows)


def test_the_report_shows_masks_beside_bars_and_examples_where_the_run_kept_photos_with_masks(tmp_path, small):
    data, out = photos(tmp_path / "data"), tmp_path / "out"
    scores = score(small, data, out, Settings(draws=40, crops=False))
    assert "<h2>Masks" not in write_report(scores, out).read_text()
    measured = measure_masks(Planted(masks=True), data, out, QUICK)
    assert read_masks(out).to_json() == measured.to_json()
    page = write_report(scores, out).read_text()
    section = page[page.index("<h2>Masks, 6 photos, 6 objects") : page.index("<h2>All metrics")]
    assert section.count("data:image/png") == 2 and "data:image/jpeg" not in section  # small has no masks
    for name in (*BARS.values(), "the detector&#x27;s masks", "AP over GrabCut in the box"):
        assert name in section
    # Differences are those of the table: all ten thresholds against the six that a filled box reaches.
    own = section[section.index("<td>the detector&#x27;s masks</td>") :]
    assert "100.0 [100.0, 100.0]" in own[:200] and "40.0 [40.0, 40.0]" in own[:500]
    kept = [Analysis.load(path) for path in (out / "photos").iterdir()]
    for path, one in zip((out / "photos").iterdir(), kept, strict=True):
        bright = torch.from_numpy(one.photo[..., 0] > 128)[None]
        found = {"boxes": torch.tensor([[20.0, 15, 80, 60]]), "scores": torch.tensor([0.9])}
        replace(one, detection=found | {"labels": torch.zeros(1, dtype=torch.long), "masks": bright}).save(path)
    again = write_report(read_scores(out), out).read_text()
    again = again[again.index("<h2>Masks") : again.index("<h2>All metrics")]
    assert again.count("data:image/jpeg") == 4


def test_damaged_scores_of_masks_are_one_clear_line(tmp_path):
    out = tmp_path
    for content in ("{", "[]", '{"rows": [{"source": "x"}]}', '{"rows": 3, "photos": "a"}'):
        (out / "masks.json").write_text(content)
        with pytest.raises(DeformscopeError, match=r"masks\.json: no scores of masks"):
            read_masks(out)


def test_what_is_missing_is_one_clear_line_before_anything_is_measured(tmp_path, monkeypatch):
    bare = photos(tmp_path / "bare", masks=False)
    with pytest.raises(DeformscopeError, match="no photo whose objects all have masks"):
        measure_masks(Planted(), bare, tmp_path / "out", QUICK)
    data = photos(tmp_path / "data")
    with pytest.raises(DeformscopeError, match=r"classes=\['cow'\]: 'cow' not known to both"):
        measure_masks(Planted(), data, tmp_path / "out", MaskSettings(classes=("cow",)))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DeformscopeError, match=r"GrabCut needs OpenCV; run: pip install 'deformscope\[masks\]'"):
        measure_masks(Planted(), data, tmp_path / "out", QUICK)
    assert not (tmp_path / "out").exists()
