"""Whole detectors of several libraries: their attention is captured as they compute it, and nothing else of them is."""

import functools
from pathlib import Path

import pytest
import torch
from torch import nn

import deformscope
from deformscope.recording.attention import is_attention

SIZES = (96, 72), (64, 88)
"""Heights and widths of the two photos."""


def padded(multiple=32):
    """Two photos of unequal size in one batch, and where they are in it."""
    high = -(-max(h for h, _ in SIZES) // multiple) * multiple
    wide = -(-max(w for _, w in SIZES) // multiple) * multiple
    pixels, mask = torch.zeros(2, 3, high, wide), torch.zeros(2, high, wide, dtype=torch.long)
    for image, (h, w) in enumerate(SIZES):
        pixels[image, :, :h, :w] = torch.randn(3, h, w)
        mask[image, :h, :w] = 1
    return pixels, mask


def with_large_offsets(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for module in model.modules():
            if is_attention(module):
                for part, scale in ((module.sampling_offsets, 3.0), (module.attention_weights, 1.0)):
                    part.weight.normal_(std=scale / part.in_features**0.5)
                    part.bias.normal_(std=scale)
    return model.eval()


class Heard:
    """What the attention modules themselves got and computed, by hooks of this test's own."""

    def __init__(self, model):
        self.calls, self.hooks, self.now = [], [], {}
        for name, module in model.named_modules():
            if is_attention(module):
                self.hooks += [
                    module.register_forward_pre_hook(functools.partial(self.enter, name), with_kwargs=True),
                    module.sampling_offsets.register_forward_hook(lambda m, a, out: self.now.update(offsets=out)),
                    module.attention_weights.register_forward_hook(lambda m, a, out: self.now.update(logits=out)),
                ]

    def enter(self, name, module, args, kwargs):
        reference = kwargs.get("reference_points", kwargs.get("refer_bbox"))
        named = [kwargs[k] for k in ("spatial_shapes_list", "spatial_shapes", "value_shapes") if k in kwargs]
        if reference is None:
            reference = args[1]
        shapes = [tuple(map(int, row)) for row in (named[0] if named else args[3])]
        self.now = {"name": name, "module": module, "reference": reference, "shapes": shapes}
        self.calls.append(self.now)


def literal(call):
    """Locations (x, y) in 0..1 [n q h p 2], a level and a point at a time, and weights [n q h p], in float64."""
    module, shapes, offsets = call["module"], call["shapes"], call["offsets"].double()
    heads = next(getattr(module, n) for n in ("n_heads", "num_heads") if hasattr(module, n))
    counts = getattr(module, "num_points_list", None) or [
        next(getattr(module, n) for n in ("n_points", "num_points") if hasattr(module, n))
    ] * len(shapes)
    n, q, _ = offsets.shape
    offsets = offsets.view(n, q, heads, sum(counts), 2)
    reference = call["reference"].double()
    if reference.ndim == 3:
        reference = reference[:, :, None]
    reference = reference.expand(-1, -1, len(shapes), -1)
    out, number = torch.zeros_like(offsets), 0
    for level, (h, w) in enumerate(shapes):
        for _ in range(counts[level]):
            base, moved = reference[:, :, level, None], offsets[:, :, :, number]
            if base.shape[-1] == 2:
                out[:, :, :, number] = base + moved / torch.tensor([w, h])
            else:
                out[:, :, :, number] = base[..., :2] + moved / counts[level] * base[..., 2:] / 2
            number += 1
    return out, call["logits"].double().view(n, q, heads, -1).softmax(-1)


def check(model, run, size):
    """Capture two passes of ``model`` and compare every field with what its module said."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    heard = Heard(model)
    for _ in range(2):
        heard.calls.clear()
        with deformscope.capture(model) as fields:
            run()
        assert list(fields.attention) == [call["name"] for call in heard.calls]
        assert len(fields) == 0
        for call, field in zip(heard.calls, fields.attention.values(), strict=True):
            locations, weights = literal(call)
            scale = torch.tensor(size, dtype=torch.float64)
            assert field.input_size == size and list(field.level_sizes) == call["shapes"]
            apart = (field.points.double() / scale - locations.flip(-1)).abs().max().item()
            assert apart < 1e-5 * max(1.0, locations.abs().max().item())
            assert (field.weights.double() - weights).abs().max() < 1e-5
    for hook in heard.hooks:
        hook.remove()
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    return fields.attention


def resnet(transformers):
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip


def test_deformable_detr_with_padding():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.DeformableDetrConfig(
        backbone_config=resnet(transformers), use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=7, num_feature_levels=4, encoder_n_points=3,
        decoder_n_points=2, with_box_refine=True, two_stage=True, two_stage_num_proposals=9,
    )  # fmt: skip
    model = with_large_offsets(transformers.DeformableDetrForObjectDetection(config))
    pixels, mask = padded()
    with torch.no_grad():
        found = check(model, lambda: model(pixel_values=pixels, pixel_mask=mask), (96, 96))
    assert [field.has_boxes for field in found.values()] == [False, False, True, True]
    encoder = next(iter(found.values()))
    assert encoder.is_dense
    # Valid ratios: the levels' references differ, and padded queries lie beyond the input.
    assert (encoder.level_reference[:, :, 0] - encoder.level_reference[:, :, 3]).abs().max() > 1
    assert encoder.reference.max() > 96


@pytest.mark.parametrize("family", ["RTDetr", "RTDetrV2", "DFine"])
def test_real_time_detectors_of_transformers(family):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    settings = {
        "backbone_config": backbone, "encoder_in_channels": [16, 24, 32], "encoder_hidden_dim": 32, "d_model": 32,
        "encoder_ffn_dim": 32, "decoder_in_channels": [32] * 3, "decoder_ffn_dim": 32, "num_queries": 6,
        "decoder_layers": 2, "decoder_attention_heads": 4, "encoder_attention_heads": 4, "num_labels": 3,
        "anchor_image_size": None, "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
        "decoder_n_points": [3, 6, 3] if family == "DFine" else 3, "hidden_expansion": 1.0,
    }  # fmt: skip
    if family != "DFine":
        del settings["hidden_expansion"]
    config = getattr(transformers, f"{family}Config")(**settings)
    model = with_large_offsets(getattr(transformers, f"{family}ForObjectDetection")(config))
    with torch.no_grad():
        found = check(model, lambda: model(pixel_values=torch.randn(2, 3, 96, 128)), (96, 128))
    assert len(found) == 2 and all(field.has_boxes for field in found.values())


def test_grounding_dino_with_padding():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    swin = transformers.SwinConfig(
        image_size=96, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    text = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config = transformers.GroundingDinoConfig(
        backbone_config=swin, text_config=text, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=8, encoder_n_points=2, decoder_n_points=2,
        max_text_len=16,
    )  # fmt: skip
    model = with_large_offsets(transformers.GroundingDinoForObjectDetection(config))
    pixels, mask = padded()
    words = torch.tensor([[101, 4937, 1012, 3899, 1012, 102]]).expand(2, -1)
    with torch.no_grad():
        found = check(model, lambda: model(pixel_values=pixels, pixel_mask=mask, input_ids=words), (96, 96))
    assert [field.has_boxes for field in found.values()] == [False, True, True]


def test_the_samplers_of_mask2formers_losses_are_no_attention(monkeypatch):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("scipy")
    torch.manual_seed(0)
    swin = transformers.SwinConfig(
        image_size=96, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_layers=2, decoder_layers=2,
        encoder_feedforward_dim=16, dim_feedforward=16, num_attention_heads=4, num_queries=6, num_labels=3,
        train_num_points=64, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
    )  # fmt: skip
    model = with_large_offsets(transformers.Mask2FormerForUniversalSegmentation(config))
    pixels, mask = padded()
    samplers = []
    sampler = torch.nn.functional.grid_sample
    monkeypatch.setattr(torch.nn.functional, "grid_sample", lambda *a, **k: samplers.append(a) or sampler(*a, **k))
    labels = [torch.tensor([0, 2]), torch.tensor([1])]
    masks = [torch.rand(len(one), 96, 96).round() for one in labels]

    def run():
        samplers.clear()
        model(pixel_values=pixels, pixel_mask=mask, mask_labels=masks, class_labels=labels)

    found = check(model, run, (96, 96))
    assert len(samplers) > 2 * 3  # more than the two layers' three levels
    first = next(iter(found.values()))
    assert first.level_sizes == ((3, 3), (6, 6), (12, 12))  # coarse to fine


def test_rt_detr_of_ultralytics():
    ultralytics = pytest.importorskip("ultralytics")
    from ultralytics.nn.tasks import RTDETRDetectionModel

    torch.manual_seed(0)
    file = Path(ultralytics.__file__).parent / "cfg/models/rt-detr/rtdetr-resnet50.yaml"
    model = with_large_offsets(RTDETRDetectionModel(str(file), verbose=False))
    images = torch.rand(2, 3, 96, 128)
    with torch.no_grad():
        found = check(model, lambda: model(images), (96, 128))
    assert len(found) == 6 and all(field.has_boxes for field in found.values())


@pytest.mark.filterwarnings("ignore")
def test_rf_detr_with_padding():
    pytest.importorskip("rfdetr")
    from rfdetr.config import RFDETRNanoConfig
    from rfdetr.models import build_model_from_config
    from rfdetr.utilities.tensors import nested_tensor_from_tensor_list

    torch.manual_seed(0)
    # The name of a file, which is not read, keeps it from fetching a backbone's weights.
    model = with_large_offsets(build_model_from_config(RFDETRNanoConfig(pretrain_weights="none.pth", device="cpu")))
    batch = nested_tensor_from_tensor_list([torch.rand(3, 384, 320), torch.rand(3, 320, 384)])
    assert batch.mask.any()
    with torch.no_grad():
        found = check(model, lambda: model(batch), (384, 384))
    assert [tuple(field.points.shape[2:4]) for field in found.values()] == [(16, 2)] * 2
