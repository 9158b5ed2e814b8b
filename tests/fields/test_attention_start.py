"""Where freshly initialised attention looks, computed, is where a fresh module of transformers does."""

import pytest
import torch

import deformscope
from deformscope.fields.attention import AttentionField, levels_of
from deformscope.fields.attention_start import directions, fresh


def test_fresh_points_around_boxes_are_those_of_a_fresh_module():
    transformers = pytest.importorskip("transformers")
    config = transformers.Deimv2Config(
        d_model=32, decoder_attention_heads=8, decoder_n_points=[4, 2], num_feature_levels=2, decoder_offset_scale=0.5
    )
    modeling = pytest.importorskip("transformers.models.deimv2.modeling_deimv2")
    module = modeling.Deimv2MultiscaleDeformableAttention(config)
    modeling.Deimv2PreTrainedModel(config)._init_weights(module)
    bias = module.sampling_offsets.bias.detach().view(8, 6, 2)
    share = torch.tensor([1 / 4] * 4 + [1 / 2] * 2)[:, None]
    wanted = (bias * share * 0.5).flip(-1)  # location = centre + offset · share · size · 0.5, (x, y)
    boxes = torch.tensor([[30.0, 20.0, 10.0, 40.0], [50.0, 60.0, 90.0, 30.0], [9.0, 9.0, 4.0, 2.0]])
    reference = boxes[None, :, None].expand(1, 3, 2, 4)
    field = AttentionField(
        torch.randn(1, 3, 8, 6, 2), torch.rand(1, 3, 8, 6), reference, levels_of([4, 2]), ((8, 12), (4, 6)), (64, 96)
    )
    start = fresh(field)
    expected = boxes[:, None, None, :2] + wanted * boxes[:, None, None, 2:]
    torch.testing.assert_close(start.points[0], expected)
    assert (start.weights == 1 / 6).all() and start.level_reference is field.level_reference


def test_fresh_points_of_an_encoder_are_those_of_a_fresh_detector():
    transformers = pytest.importorskip("transformers")
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    config = transformers.DeformableDetrConfig(
        backbone_config=transformers.ResNetConfig(**sizes, out_features=["stage2", "stage3", "stage4"]),
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=32, encoder_layers=2,
        decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_n_points=3,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=7, num_feature_levels=3, disable_custom_kernels=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.DeformableDetrForObjectDetection(config).eval()
    pixels = torch.randn(1, 3, 96, 160)

    def encoders():
        with torch.no_grad(), deformscope.capture(model) as fields:
            model(pixel_values=pixels)
        return [field for field in fields.attention.values() if field.is_dense]

    begun = encoders()
    assert len(begun) == 2
    for field in begun:
        torch.testing.assert_close(field.points, fresh(field).points, atol=1e-3, rtol=0)
        torch.testing.assert_close(field.weights, fresh(field).weights)
    for module in model.modules():
        if hasattr(module, "sampling_offsets"):
            torch.nn.init.normal_(module.sampling_offsets.weight)
            torch.nn.init.normal_(module.attention_weights.weight)
    for field, start in zip(encoders(), begun, strict=True):
        assert float((field.points - start.points).abs().max()) > 5
        torch.testing.assert_close(fresh(field).points, start.points, atol=1e-3, rtol=0)


def test_directions_are_of_length_one_and_begin_at_the_right():
    torch.testing.assert_close(directions(4), torch.tensor([[0.0, 1], [1, 0], [0, -1], [-1, 0]]), atol=1e-6, rtol=0)
