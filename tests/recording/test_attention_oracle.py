"""A trained detector's points, weights and references are those that were recorded without deformscope."""

import importlib
import sys

import numpy as np
import pytest
import torch

import deformscope


def of_query(field):
    """Points and references in px, (x, y) first as they are recorded, and weights; in float64."""
    return field.points[0].flip(-1).double(), field.reference[0][:, [1, 0, 3, 2]].double(), field.weights[0].double()


@pytest.mark.parametrize("name", ["atto", "femto"])
def test_a_trained_detector_gives_the_recorded_points(shared, name, monkeypatch):
    """Up to the rounding of float32, in which it was recorded; how much that is, the network in float64 tells."""
    pytest.importorskip("transformers")
    import skimage.data
    from safetensors.torch import load_file

    monkeypatch.syspath_prepend(str(shared / "attention"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    deimv2 = importlib.import_module("deimv2")
    model, size = deimv2.load(name)
    recorded = load_file(shared / "attention" / f"deimv2_{name}.oracle.safetensors")
    photos = ("chelsea", "coffee", "astronaut")

    def captured(dtype):
        found = []
        for photo in photos:
            pixels = deimv2.prepare(np.ascontiguousarray(getattr(skimage.data, photo)()), size).to(dtype)
            with torch.no_grad(), deformscope.capture(model.to(dtype)) as fields:
                model(pixel_values=pixels)
            assert len(fields.attention) == 3
            found.append([of_query(field) for field in fields.attention.values()])
        return found

    single, double = captured(torch.float32), captured(torch.float64)
    for layer in range(3):
        keys = [f"{photo}/layer{layer}" for photo in photos]
        told = [
            (
                recorded[f"{key}/locations_xy"] * size,
                recorded[f"{key}/reference_cxcywh"] * size,
                recorded[f"{key}/weights"],
            )
            for key in keys
        ]
        # Medians: points within 1e-3 px, references within 1e-6 of the input's size. Each decoder layer hands its
        # rounding on to the next, and Femto's last one multiplies it.
        typical = 1e-3, 1e-6 * size, 5e-6 if (name, layer) == ("femto", 2) else 1e-6
        for part, most in enumerate(typical):
            apart = [(wanted[part] - found[layer][part]).abs() for wanted, found in zip(told, single, strict=True)]
            assert all(one.median() < most for one in apart)
            rounding = max(
                (one[layer][part] - other[layer][part]).abs().max() for one, other in zip(single, double, strict=True)
            )
            assert 0 < max(one.max() for one in apart) < 10 * rounding
