"""The one-stage detector's heads: the same for all levels on wish, several deformable convolutions deep on wish."""

import pytest
import torch

import deformscope
from deformscope.detectors.dense.config import DenseConfig
from deformscope.detectors.dense.dense import DenseDetector


def build(**choices):
    torch.manual_seed(0)
    detector = DenseDetector(DenseConfig(("cat", "dog"), channels=16, **choices))
    for name, parameter in detector.heads.named_parameters():
        if "conv_offset" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return detector


def maps(n=1):
    generator = torch.Generator().manual_seed(1)
    sizes = {"stride8": (32, 12, 8), "stride16": (96, 6, 4), "stride32": (320, 3, 2)}
    return {name: torch.randn(n, *size, generator=generator) for name, size in sizes.items()}


def test_shared_heads_learn_as_one():
    detector = build(shared=True)
    assert len(list(detector.heads.parameters())) == len(list(build().heads["stride8"].parameters()))
    predictions = detector.predict(maps())
    target = {"boxes": torch.tensor([[8.0, 8.0, 30.0, 40.0]]), "labels": torch.tensor([1])}
    sum(detector.prediction_losses(predictions, [target]).values()).backward()
    parameters = [p for p in detector.parameters() if p.requires_grad]
    torch.optim.SGD(parameters, lr=1.0).step()
    states = [head.state_dict() for head in detector.heads.values()]
    for name, value in states[0].items():
        assert all(torch.equal(state[name], value) for state in states)
    assert not torch.equal(states[0]["box.weight"], build(shared=True).heads["stride8"].state_dict()["box.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_shared_heads_are_kept_and_stay_shared(tmp_path, dtype):
    detector = build(shared=True).eval()
    detector.save(tmp_path / "shared.safetensors", dtype)
    again = deformscope.load(tmp_path / "shared.safetensors")
    assert again.config == detector.config
    assert again.heads["stride8"].deform.weight is again.heads["stride32"].deform.weight
    expected, found = detector.predict(maps()).boxes, again.predict(maps()).boxes
    assert torch.allclose(found, expected, atol=0.5 if dtype == torch.float16 else 1e-4)


def test_capture_tells_the_layers_of_shared_and_stacked_heads_apart():
    detector = build(shared=True, deform_layers=2).eval()
    with deformscope.capture(detector) as fields:
        detector(torch.zeros(64, 96, 3, dtype=torch.uint8).numpy())
    names = [f"heads.stride{stride}.{layer}" for stride in (8, 16, 32) for layer in ("before.0", "deform")]
    assert list(fields) == names
