"""Attributions of attention are exact: they sum to ⟨∂y/∂z, z⟩, and each is what scaling its weight changes."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import deformscope as ds

SHAPES, HEADS, POINTS, WIDTH, QUERIES = [(5, 7), (3, 4)], 2, 3, 8, 6


class Attention(nn.Module):
    """Deformable attention of points, written out; it keeps its result before the last projection."""

    def __init__(self):
        super().__init__()
        self.n_points = POINTS
        self.sampling_offsets = nn.Linear(WIDTH, HEADS * len(SHAPES) * POINTS * 2)
        self.attention_weights = nn.Linear(WIDTH, HEADS * len(SHAPES) * POINTS)
        self.output_proj, self.scale = nn.Linear(WIDTH, WIDTH), None
        nn.init.normal_(self.sampling_offsets.bias)

    def forward(self, query, reference_points, value, spatial_shapes):
        n, q, _ = query.shape
        offsets = self.sampling_offsets(query).view(n, q, HEADS, len(SHAPES), POINTS, 2)
        weights = self.attention_weights(query).view(n, q, HEADS, -1).softmax(-1)
        weights = weights if self.scale is None else weights * self.scale
        cells = offsets.new_tensor([[w, h] for h, w in SHAPES])
        places = 2 * (reference_points[:, :, None, :, None] + offsets / cells[:, None]) - 1
        read, start = [], 0
        for level, (h, w) in enumerate(SHAPES):
            maps = value[:, start : start + h * w].unflatten(-1, (HEADS, -1)).permute(0, 2, 3, 1).flatten(0, 1)
            grid = places[:, :, :, level].transpose(1, 2).flatten(0, 1)
            read.append(F.grid_sample(maps.unflatten(-1, (h, w)), grid, align_corners=False))
            start += h * w
        values = torch.cat(read, -1).unflatten(0, (n, HEADS))  # [n h d q p]
        self.z = torch.einsum("nhdqp,nqhp->nqhd", values, weights)
        return self.output_proj(self.z.flatten(2))


class Decoder(nn.Module):
    """Two layers, the upper with references of its own, behind maps that come from the image."""

    def __init__(self):
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, WIDTH, 3, padding=1), nn.AdaptiveAvgPool2d(1)
        self.lower, self.upper = Attention(), Attention()
        self.queries = nn.Parameter(torch.randn(1, QUERIES, WIDTH))
        self.references = nn.Parameter(torch.rand(1, QUERIES, 1, 2))

    def forward(self, images):
        maps = self.stem(images).relu()
        value = torch.cat([F.adaptive_avg_pool2d(maps, size).flatten(2) for size in SHAPES], -1).transpose(1, 2)
        references = self.references.expand(-1, -1, len(SHAPES), -1)
        x = self.queries + self.lower(self.queries, references, value, SHAPES)
        x = x + self.upper(x.softmax(-1), references * 0.9, value, SHAPES)
        return x.square().sum(-1)


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return Decoder().double()


IMAGE = torch.rand(1, 3, 20, 28, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def of(out):
    return out[0, 2] + 0.5 * out[0, 4].tanh()


def test_they_sum_to_what_the_output_would_lose_without_the_attention(decoder):
    why = ds.explain(decoder, IMAGE, of=of)
    assert list(why.attention) == ["lower", "upper"] and not why.layers
    y = of(decoder(IMAGE))
    assert why.value == pytest.approx(y.item(), abs=1e-12)
    slopes = torch.autograd.grad(y, [decoder.lower.z, decoder.upper.z])
    for layer, module, slope in zip(why.attention.values(), (decoder.lower, decoder.upper), slopes, strict=True):
        wanted = (slope * module.z).detach()[0]
        assert layer.points.shape == (QUERIES, HEADS, len(SHAPES) * POINTS)
        torch.testing.assert_close(layer.points.sum(-1), wanted.sum(-1), rtol=0, atol=1e-12)
        assert layer.total == pytest.approx(wanted.sum().item(), abs=1e-12) and abs(layer.total) > 1e-5
        for parts in (layer.by_query(), layer.by_head(), layer.by_level()):
            torch.testing.assert_close(parts.sum(), layer.points.sum())
    # Of the upper layer's queries only those that were asked for matter.
    assert why.attention["upper"].by_query().nonzero()[:, 0].tolist() == [2, 4]
    assert why.receptive_field.gradient.abs().sum() > 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in decoder.modules())


@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_each_is_what_scaling_its_weight_changes(decoder, layer):
    why, module = ds.explain(decoder, IMAGE, of=of), getattr(decoder, layer)
    step, shape = 1e-6, (1, QUERIES, HEADS, len(SHAPES) * POINTS)
    for place in [(0, 2, 0, 0), (0, 2, 1, 5), (0, 4, 0, 3), (0, 1, 1, 2)]:
        values = []
        for sign in (1, -1):
            module.scale = torch.ones(shape, dtype=torch.float64)
            module.scale[place] += sign * step
            with torch.no_grad():
                values.append(of(decoder(IMAGE)).item())
        module.scale = None
        slope = (values[0] - values[1]) / (2 * step)
        assert why.attention[layer].points[place[1:]].item() == pytest.approx(slope, abs=1e-8)


def test_layers_are_chosen_by_name_among_both_kinds(decoder):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.offset = decoder, nn.Conv2d(3, 18, 3, padding=1).double()
            self.deform = torchvision.ops.DeformConv2d(3, 3, 3, padding=1).double()

        def forward(self, x):
            return self.decoder(self.deform(x, self.offset(x)))

    why = ds.explain(Both(), IMAGE, of=of)
    assert list(why.layers) == ["deform"] and list(why.attention) == ["decoder.lower", "decoder.upper"]
    assert list(ds.explain(decoder, IMAGE, of=of, layers=["upper"]).attention) == ["upper"]
    with pytest.raises(ds.DeformscopeError, match=r"deformable attention is in explanation\.attention"):
        ds.explain(decoder, IMAGE, of=of).layer()


def test_a_detector_of_transformers_is_explained_down_to_its_encoder():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.DeformableDetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=32,
        encoder_layers=1, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_queries=7, encoder_n_points=2, decoder_n_points=2,
    )  # fmt: skip
    model = transformers.DeformableDetrForObjectDetection(config).eval().double()
    pixels = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    why = ds.explain(model, pixels, of=lambda out: out.logits[0, 3, 1])
    assert [name.split(".")[1] for name in why.attention] == ["encoder", "decoder", "decoder"]
    last = list(why.attention.values())[-1]
    assert last.by_query().nonzero()[:, 0].tolist() == [3] and all(one.total != 0 for one in why.attention.values())
    # Against the result of the last decoder layer's attention, before its projection.
    module = model.get_submodule(last.field.name)
    kept = []
    hook = module.output_proj.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    value = model(pixels).logits[0, 3, 1]
    hook.remove()
    (slope,) = torch.autograd.grad(value, kept[0])
    assert last.total == pytest.approx((slope * kept[0]).sum().item(), abs=1e-12)
