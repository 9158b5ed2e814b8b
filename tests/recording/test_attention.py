"""Deformable attention is captured as its modules compute it, whichever library's they are."""

import inspect
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deformscope
from deformscope.errors import NoDeformableCall

SIZES = [(5, 7), (3, 4), (2, 2)]
HEADS, POINTS, WIDTH, BATCH = 4, 2, 32, 2
CONFIG = SimpleNamespace(
    d_model=WIDTH,
    num_feature_levels=3,
    decoder_attention_heads=HEADS,
    decoder_n_points=POINTS,
    decoder_offset_scale=0.5,
    decoder_method="default",
    decoder_n_levels=3,
    disable_custom_kernels=True,
    d_ffn=64,
    n_levels=3,
    num_attention_heads=HEADS,
    decoder_cross_attention_heads=HEADS,
    decoder_num_points=POINTS,
)
BOXES_ONLY = {"d_fine", "deimv2", "rt_detr_v2"}
"""Their references have one level, and boxes."""
FAMILIES = {
    "deformable_detr": ("DeformableDetrMultiscaleDeformableAttention", (CONFIG, HEADS, POINTS)),
    "grounding_dino": ("GroundingDinoMultiscaleDeformableAttention", (CONFIG, HEADS, POINTS)),
    "mm_grounding_dino": ("MMGroundingDinoMultiscaleDeformableAttention", (CONFIG, HEADS, POINTS)),
    "mask2former": ("Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention", (WIDTH, HEADS, 3, POINTS)),
    "oneformer": ("OneFormerPixelDecoderEncoderMultiscaleDeformableAttention", (WIDTH, HEADS, 3, POINTS)),
    "rt_detr": ("RTDetrMultiscaleDeformableAttention", (CONFIG, HEADS, POINTS)),
    "rt_detr_v2": ("RTDetrV2MultiscaleDeformableAttention", (CONFIG,)),
    "d_fine": ("DFineMultiscaleDeformableAttention", (CONFIG,)),
    "deimv2": ("Deimv2MultiscaleDeformableAttention", (CONFIG,)),
    "lw_detr": ("LwDetrMultiscaleDeformableAttention", (CONFIG, HEADS, POINTS)),
    "rf_detr": ("RfDetrMultiscaleDeformableAttention", (CONFIG, HEADS, POINTS)),
    "pp_doclayout_v2": ("PPDocLayoutV2MultiscaleDeformableAttention", (CONFIG, HEADS, POINTS)),
    "pp_doclayout_v3": ("PPDocLayoutV3MultiscaleDeformableAttention", (CONFIG, HEADS, POINTS)),
    "pp_doclayout_v4": ("PPDocLayoutV4MultiscaleDeformableAttention", (CONFIG, HEADS, POINTS)),
    "omdet_turbo": ("OmDetTurboMultiscaleDeformableAttention", (CONFIG, HEADS, POINTS)),
}
V2 = "rt_detr_v2", "d_fine", "deimv2"


def attention(family: str, method: str = "default") -> nn.Module:
    room = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    name, arguments = FAMILIES[family]
    arguments = tuple(
        SimpleNamespace(**vars(one) | {"decoder_method": method}) if one is CONFIG else one for one in arguments
    )
    module = getattr(room, name)(*arguments)
    with torch.no_grad():
        for part, scale in ((module.sampling_offsets, 3.0), (module.attention_weights, 1.0)):
            part.weight.normal_(std=scale / WIDTH**0.5)
            part.bias.normal_(std=scale)
    return module


class Network(nn.Module):
    """A convolution, which tells the network's input, and one attention module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.cross = module

    def forward(self, images, reference, queries, values):
        flow = images.new_zeros(len(images), 4, 6, 2)
        F.grid_sample(self.stem(images), flow, align_corners=False)  # a sampler that is no attention
        shapes = torch.tensor(SIZES)
        arguments = {
            "hidden_states": queries,
            "encoder_hidden_states": values,
            "reference_points": reference,
            "spatial_shapes": shapes,
            "spatial_shapes_list": SIZES,
            "level_start_index": torch.tensor([0, 35, 47]),
        }
        known = inspect.signature(self.cross.forward).parameters
        return self.cross(**{name: value for name, value in arguments.items() if name in known})


def literal_locations(module, family, queries, reference):
    """(x, y) in 0..1 [n q h l p 2], one at a time and in float64."""
    n, q = queries.shape[:2]
    offsets = module.sampling_offsets(queries).view(n, q, HEADS, 3, POINTS, 2).double()
    out = torch.zeros(n, q, HEADS, 3, POINTS, 2, dtype=torch.float64)
    reference = reference.double()
    for level, (h, w) in enumerate(SIZES):
        for point in range(POINTS):
            base = reference[:, :, level, :2][:, :, None]
            moved = offsets[:, :, :, level, point]
            if reference.shape[-1] == 2:
                out[:, :, :, level, point] = base + moved / torch.tensor([w, h], dtype=torch.float64)
            else:
                half = reference[:, :, level, 2:][:, :, None] / 2
                out[:, :, :, level, point] = base + moved / POINTS * half
    return out


@pytest.mark.parametrize("grad", ["no_grad", "inference_mode", "grad"])
@pytest.mark.parametrize(
    ("family", "kind", "method"),
    [
        (f, kind, "default")
        for f in FAMILIES
        for kind in ("points", "boxes")
        if not (f in BOXES_ONLY and kind == "points")
    ]
    + [(f, "boxes", "discrete") for f in V2],
)
def test_points_and_weights_are_the_modules_own(family, kind, method, grad):
    if grad != "no_grad" and family not in ("deformable_detr", "d_fine"):
        pytest.skip("one of each kind will do")
    if family in ("mask2former", "oneformer") and kind == "boxes":
        pytest.skip("has no boxes")
    torch.manual_seed(3)
    module = attention(family, method).eval()
    network = Network(module)
    cells = sum(h * w for h, w in SIZES)
    queries = torch.randn(BATCH, cells if kind == "points" else 6, WIDTH)
    values = torch.randn(BATCH, cells, WIDTH)
    # Levels differ, as they do with the valid ratios of a padded batch.
    reference = torch.rand(BATCH, queries.shape[1], 3, 2 if kind == "points" else 4) * 0.9 + 0.2
    if family in BOXES_ONLY:
        reference = reference[:, :, :1]
    images = torch.randn(BATCH, 3, 40, 56)
    with getattr(torch, {"grad": "enable_grad"}.get(grad, grad))(), deformscope.capture(network) as fields:
        network(images, reference, queries, values)
    assert list(fields.attention) == ["cross"] and not len(fields)
    field = fields.attention["cross"]
    with torch.no_grad():
        wanted = literal_locations(module, family, queries, reference.expand(-1, -1, 3, -1))
        weights = module.attention_weights(queries).view(BATCH, -1, HEADS, 3 * POINTS).softmax(-1)
    px = wanted.flatten(3, 4).flip(-1) * torch.tensor([40.0, 56.0], dtype=torch.float64)
    assert field.input_size == (40, 56) and field.level_sizes == tuple(SIZES)
    torch.testing.assert_close(field.points.double(), px, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(field.weights, weights, atol=1e-6, rtol=1e-5)
    scale = torch.tensor([40.0, 56.0])
    torch.testing.assert_close(
        field.level_reference[..., :2], (reference[..., :2].flip(-1) * scale).expand(-1, -1, 3, -1)
    )
    assert field.has_boxes == (kind == "boxes") and field.is_dense == (kind == "points")
    assert field.level.tolist() == [0, 0, 1, 1, 2, 2]
    assert not module._forward_hooks and not module._forward_pre_hooks and not network._forward_pre_hooks


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float64_points_are_the_modules_own_to_a_billionth_of_a_pixel(family):
    torch.manual_seed(4)
    network = Network(attention(family).eval()).double()
    cells = sum(h * w for h, w in SIZES)
    queries, values = (torch.randn(BATCH, count, WIDTH, dtype=torch.float64) for count in (6, cells))
    boxes = family not in ("mask2former", "oneformer")
    reference = torch.rand(BATCH, 6, 1, 4 if boxes else 2, dtype=torch.float64) * 0.9 + 0.2
    if family not in BOXES_ONLY:
        reference = reference.expand(-1, -1, 3, -1)
    with torch.no_grad(), deformscope.capture(network) as fields:
        network(torch.randn(BATCH, 3, 40, 56, dtype=torch.float64), reference, queries, values)
        wanted = literal_locations(network.cross, family, queries, reference.expand(-1, -1, 3, -1))
        weights = network.cross.attention_weights(queries).view(BATCH, -1, HEADS, 3 * POINTS).softmax(-1)
    field = fields.attention["cross"]
    px = wanted.flatten(3, 4).flip(-1) * torch.tensor([40.0, 56.0], dtype=torch.float64)
    assert field.points.dtype == field.level_reference.dtype == field.weights.dtype == torch.float64
    torch.testing.assert_close(field.points, px, atol=1e-9, rtol=0)
    torch.testing.assert_close(field.weights, weights, atol=1e-12, rtol=0)


def test_nothing_is_left_behind_when_the_block_raises():
    module = attention("deformable_detr")
    network = Network(module)
    with pytest.raises(RuntimeError, match="mine"), deformscope.capture(network):
        raise RuntimeError("mine")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_a_model_that_samples_without_attention_is_not_taken_for_one():
    class Warp(nn.Module):
        def forward(self, images):
            return F.grid_sample(images, torch.zeros(1, 4, 4, 2), align_corners=True)

    with pytest.raises(NoDeformableCall), deformscope.capture(Warp()) as fields:
        Warp()(torch.randn(1, 3, 8, 8))
    assert not fields.attention


def test_an_encoder_is_an_offset_field_of_its_query_level():
    torch.manual_seed(0)
    module = attention("deformable_detr")
    network = Network(module)
    cells = sum(h * w for h, w in SIZES)
    grid = [
        torch.stack([(torch.arange(h * w) % w + 0.5) / w, (torch.arange(h * w) // w + 0.5) / h], dim=-1)
        for h, w in SIZES
    ]
    reference = torch.cat(grid)[None, :, None].expand(BATCH, -1, 3, -1)
    with torch.no_grad(), deformscope.capture(network) as fields:
        network(
            torch.randn(BATCH, 3, 40, 56), reference, torch.randn(BATCH, cells, WIDTH), torch.randn(BATCH, cells, WIDTH)
        )
    field = fields.attention["cross"]
    dense = field.dense(1, 2)
    assert dense.offset.shape == (BATCH, HEADS, POINTS, 3, 4, 2)
    # The points of the dense field are those of attention: query (y, x) = (2, 1) of level 1, points on level 2.
    query = 35 + 2 * 4 + 1
    seen = dense.to_pixels(dense.sampling_points()[1, :, :, 2, 1], 1)
    torch.testing.assert_close(seen, field.points[1, query, :, 4:6], atol=1e-4, rtol=1e-5)
    d_f, _ = deformscope.split(dense.offset)
    mean = field.split(weighted=False)[0]
    assert d_f.shape == (BATCH, HEADS, 1, 3, 4, 2) and mean.shape == (BATCH, cells, HEADS, 1, 2)
    with pytest.raises(deformscope.DeformscopeError, match="query_level=3: expected 0 to 2"):
        field.dense(3, 0)


def test_object_queries_lie_on_no_grid():
    module = attention("rt_detr")
    network = Network(module)
    with torch.no_grad(), deformscope.capture(network) as fields:
        network(torch.randn(1, 3, 40, 56), torch.rand(1, 6, 3, 4), torch.randn(1, 6, WIDTH), torch.randn(1, 51, WIDTH))
    with pytest.raises(deformscope.DeformscopeError, match="object queries lie on no grid"):
        fields.attention["cross"].dense(0, 0)


class OwnRule(nn.Module):
    """Deformable attention that moves its points by another rule, or in volumes."""

    def __init__(self, rule):
        super().__init__()
        self.sampling_offsets, self.attention_weights = nn.Linear(8, 2 * 3 * 2), nn.Linear(8, 2 * 3)
        self.stem, self.rule, self.n_points = nn.Conv2d(3, 4, 1), rule, 3

    def forward(self, query, reference_points, spatial_shapes, images):
        n, q = query.shape[:2]
        offsets = self.sampling_offsets(query).view(n, q, 2, 3, 2)
        self.attention_weights(query)
        locations = reference_points[:, :, None] + offsets
        grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
        maps = self.stem(images).reshape(n * 2, 2, *images.shape[-2:])
        if self.rule == "volume":
            grid = torch.cat([grid, grid[..., :1]], dim=-1)[:, None]
            return F.grid_sample(maps[:, :, None], grid, align_corners=False)
        return F.grid_sample(maps, grid[:, :, :2] if self.rule == "fewer" else grid, align_corners=False)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("own", "moves its points from the references by a rule of its own"),
        ("volume", "samples volumes"),
        ("fewer", r"grids of shape \(4, 5, 2, 2\)"),
    ],
)
def test_attention_of_another_convention_is_named_and_not_recorded(rule, why):
    module, arguments = OwnRule(rule), (torch.randn(2, 5, 8), torch.rand(2, 5, 1, 2), [(6, 7)], torch.rand(2, 3, 6, 7))
    with (
        pytest.raises(NoDeformableCall, match=f"Seen, but not understood: cross: .*{why}"),
        deformscope.capture(nn.ModuleDict({"cross": module})) as fields,
    ):
        module(*arguments)
    assert not fields.attention
    beside = nn.ModuleDict({"cross": module, "seen": attention("deformable_detr")})
    network = Network(beside["seen"])
    model = nn.ModuleDict({"cross": module, "network": network})
    cells = torch.randn(2, 51, WIDTH)
    with (
        pytest.warns(deformscope.errors.DeformscopeWarning, match=f"not in the fields: cross: .*{why}"),
        deformscope.capture(model) as fields,
    ):
        module(*arguments)
        network(torch.randn(2, 3, 40, 56), torch.rand(2, 51, 3, 2), cells, cells)
    assert list(fields.attention) == ["network.cross"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["points", "boxes"])
def test_attention_in_any_float_type_is_understood(kind, dtype):
    torch.manual_seed(3)
    network = Network(attention("deformable_detr")).to(dtype)
    cells = torch.randn(2, 51, WIDTH, dtype=dtype)
    reference = torch.rand(2, 51, 3, 2 if kind == "points" else 4).to(dtype)
    with torch.no_grad(), deformscope.capture(network) as fields:
        network(torch.randn(2, 3, 40, 56, dtype=dtype), reference, cells, cells)
        wanted = literal_locations(network.cross, "deformable_detr", cells, reference).flatten(3, 4).flip(-1)
    apart = (fields.attention["cross"].points / torch.tensor([40.0, 56.0]) - wanted).abs()
    assert apart.max() < 16 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_under_autocast_is_understood(dtype):
    torch.manual_seed(3)
    network, cells = Network(attention("deformable_detr")), torch.randn(2, 51, WIDTH)
    with torch.no_grad(), torch.autocast("cpu", dtype), deformscope.capture(network) as fields:
        network(torch.randn(2, 3, 40, 56), torch.rand(2, 51, 3, 4), cells, cells)
    assert list(fields.attention) == ["cross"]
