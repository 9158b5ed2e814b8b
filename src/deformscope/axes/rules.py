"""How operators move the places of cells: a rule each, from the axes of what an operator gets to those of its output.

An operator without a rule loses the places, except for those that compute each cell from the same cell (pointwise
operators, norms). Rules look at shapes and arguments, never at values.
"""

from __future__ import annotations

from collections.abc import Callable

from .axes import Axes, Pieces, axes_in, joined, narrowed, plain, reshaped, selected, size_of
from .windows import (
    Operation,
    Places,
    Rule,
    adaptive_pool,
    columns,
    convolution,
    pad,
    pixel_shuffle,
    pixel_unshuffle,
    pool,
    resize,
    unfold,
)


def pointwise(op: Operation, known: list[Places]) -> Places:
    """Each cell of the output is made of the same cell of all inputs, broadcast. Known and unknown make known."""
    shape = tuple(op.out.shape)
    several = [one for one in known if isinstance(one, Axes)]
    if not several:
        return next((one for one in known if one is not None), None)
    wide = [one if one.shape == shape else _broadcast(one, shape) for one in several]
    return joined(wide)


def _broadcast(axes: Axes, shape: tuple[int, ...]) -> Axes:
    """Expanded to ``shape``, of which it has the last dimensions, or ones in their places."""
    missing = len(shape) - len(axes.dims)
    dims = [plain(size) for size in shape[:missing]]
    dims += [dim if size_of(dim) == size else plain(size) for dim, size in zip(axes.dims, shape[missing:], strict=True)]
    return axes._replace(dims=tuple(dims))


def _slice(op: Operation, axes: Axes) -> Places:
    index = op.dim(1)
    return narrowed(axes, index, _start(op, axes.shape[index]), op.out.shape[index], op.arg(4, "step", 1))


def _start(op: Operation, size: int) -> int:
    """Where a part of a dimension of this size begins, of a slice, a narrow or one of the parts of a split."""
    if op.name in ("aten::split", "aten::split_with_sizes"):
        sizes = op.args[1]
        return sum(sizes[: op.number]) if isinstance(sizes, (list, tuple)) else op.number * sizes
    if op.name == "aten::chunk":
        return op.number * -(-size // op.args[1])
    start = op.arg(2, "start") or 0
    return max(start + size, 0) if start < 0 else min(start, size)


def _part(op: Operation, axes: Axes) -> Places:
    index = op.dim(1 if op.name == "aten::narrow" else 2)
    return narrowed(axes, index, _start(op, axes.shape[index]), op.out.shape[index])


def _select(op: Operation, axes: Axes) -> Places:
    index, cell = op.dim(1), op.arg(2, "index")
    return selected(axes, index, cell % axes.shape[index])


def _unbind(op: Operation, axes: Axes) -> Places:
    return selected(axes, op.dim(1), op.number)


def _flip(op: Operation, axes: Axes) -> Places:
    found = axes
    for dim in op.args[1]:
        index = dim % len(axes.dims)
        if not axes_in(axes.dims[index]):
            continue
        if len(axes.dims[index]) > 1:
            return None
        ((axis, size, step),) = axes.dims[index]
        assert axis is not None
        end = (size - 1) * step
        found = found.with_dim(index, ((axis, size, -step),)).moved(axis, end, end)
    return found


def _roll(op: Operation, axes: Axes) -> Places:
    dims = op.arg(2, "dims") or range(len(axes.dims))  # none: the flattened tensor is rolled
    moved = [size for size, shift in zip((axes.dims[d] for d in dims), op.args[1], strict=False) if shift]
    return None if any(axes_in(dim) for dim in moved) else axes


def _permute(op: Operation, axes: Axes) -> Places:
    return axes._replace(dims=tuple(axes.dims[d] for d in op.args[1]))


def _transpose(op: Operation, axes: Axes) -> Places:
    if len(axes.dims) < 2:
        return axes
    one, other = (0, 1) if op.name == "aten::t" else (op.arg(1, "dim0"), op.arg(2, "dim1"))
    dims = list(axes.dims)
    dims[one], dims[other] = dims[other], dims[one]
    return axes._replace(dims=tuple(dims))


def _unsqueeze(op: Operation, axes: Axes) -> Places:
    dims = list(axes.dims)
    dims.insert(op.arg(1, "dim") % op.out.ndim, ())
    return axes._replace(dims=tuple(dims))


def _squeeze(op: Operation, axes: Axes) -> Places:
    chosen = op.arg(1, "dim", range(len(axes.dims)))
    gone = {d % len(axes.dims) for d in ([chosen] if isinstance(chosen, int) else chosen)}
    dims = [dim for index, dim in enumerate(axes.dims) if index not in gone or size_of(dim) > 1]
    return axes._replace(dims=tuple(dims))


def _view(op: Operation, axes: Axes) -> Places:
    return reshaped(axes, op.out.shape)


def _expand(op: Operation, axes: Axes) -> Places:
    return _broadcast(axes, tuple(op.out.shape))


def _repeat(op: Operation, axes: Axes) -> Places:
    missing = op.out.ndim - len(axes.dims)
    dims = [plain(size) for size in op.args[1][:missing]]
    dims += [(*plain(times), *dim) for times, dim in zip(op.args[1][missing:], axes.dims, strict=True)]
    return axes._replace(dims=tuple(dims))


def _concatenate(op: Operation) -> Places:
    """Of channels, or along places: then the pieces are kept apart, or are one again if each begins where one ends."""
    several = [op.places(one) for one in op.args[0]]
    if op.name == "aten::stack":
        index = op.arg(1, "dim", 0) % op.out.ndim
        each_one = [one for one in several if isinstance(one, Axes)]
        found = joined(each_one) if each_one else None
        return (
            None
            if found is None
            else found._replace(dims=(*found.dims[:index], plain(len(several)), *found.dims[index:]))
        )
    index = op.arg(1, "dim", 0) % op.out.ndim
    known = [one for one in several if isinstance(one, Axes)]
    if not any(axes_in(one.dims[index]) for one in known):
        found = joined([one.with_dim(index, ()) for one in known]) if known else None
        return found and found.with_dim(index, plain(op.out.shape[index]))
    sizes = [one.shape[index] for one in op.args[0]]
    whole = known[0] if len(known) == len(several) else None
    for one in known[1:]:
        whole = whole and _continued(whole, one, index)
    return whole or Pieces(
        index, tuple((size, one if isinstance(one, Axes) else None) for size, one in zip(sizes, several, strict=True))
    )


def _continued(one: Axes, other: Axes, index: int) -> Axes | None:
    """Both as one, where the other begins a step after the last cell of the one."""
    if len(one.dims[index]) != 1 or len(other.dims[index]) != 1:
        return None
    (axis, size, step), (_, more, _) = one.dims[index][0], other.dims[index][0]
    whole = one.with_dim(index, ((axis, size + more, step),))
    expected = narrowed(whole, index, size, more)
    close = expected is not None and all(
        abs(a - b) < 1e-6 for a, b in zip((*expected.low, *expected.high), (*other.low, *other.high), strict=True)
    )
    return whole if close and expected is not None and expected.dims == other.dims else None


def _product(op: Operation) -> Places:
    """Matrix products keep the places of their rows (of attention: the queries), or else of their columns."""
    one, other = op.args[1:3] if op.name in ("aten::addmm", "aten::baddbmm") else op.args[:2]
    left, right = op.places(one), op.places(other)
    if isinstance(left, Axes) and len(left.dims) > 1:
        last = len(left.dims) - 1
        if right is None:  # weights
            return left.absorbed(last, op.out.shape[-1])
        if any(axes_in(dim) for dim in left.dims[:-1]):
            return left.with_dim(last, plain(op.out.shape[-1]))
    if isinstance(right, Axes) and len(right.dims) > 1:
        return right.absorbed(len(right.dims) - 2, op.out.shape[-2])
    return None


def _linear(op: Operation, axes: Axes) -> Places:
    return axes.absorbed(len(axes.dims) - 1, op.out.shape[-1])


def _attend(op: Operation, axes: Axes) -> Places:
    if op.number:
        return None
    return axes.with_dim(len(axes.dims) - 1, plain(op.out.shape[-1])) if op.out.ndim == len(axes.dims) else None


def _reduce(op: Operation, axes: Axes) -> Places:
    chosen = op.arg(1, "dim")
    if "dim" not in op.kwargs and op.name in ("aten::linalg_vector_norm", "aten::norm"):
        chosen = op.arg(2, "dim")
    if not isinstance(chosen, (int, list, tuple)) or isinstance(chosen, bool):
        return None
    dims = sorted({d % len(axes.dims) for d in ([chosen] if isinstance(chosen, int) else chosen)}, reverse=True)
    for index in dims:
        axes = axes.absorbed(index)
        axes = axes.without(index) if op.out.ndim < op.args[0].ndim else axes
    return axes


def _copy(op: Operation) -> Places:
    source = op.places(op.args[1])
    return source if isinstance(source, Axes) and source.shape == tuple(op.out.shape) else None


def _sampled(op: Operation) -> Places:
    """``grid_sample`` puts out a cell for each of its grid, which has (x, y) in its last dimension."""
    grid = op.places(op.args[1])
    if not isinstance(grid, Axes):
        return None
    grid = grid.absorbed(len(grid.dims) - 1)
    return grid._replace(dims=(grid.dims[0], plain(op.out.shape[1]), *grid.dims[1:-1]))


def _names(text: str) -> list[str]:
    return [f"aten::{name}" for name in text.split()]


KEEPING = frozenset(
    _names(
        "_to_copy to contiguous clone detach alias lift_fresh dropout native_dropout feature_dropout alpha_dropout "
        "batch_norm native_batch_norm cudnn_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
        "_batch_norm_impl_index _batch_norm_with_update _batch_norm_no_update layer_norm native_layer_norm group_norm "
        "native_group_norm instance_norm rms_norm _fused_rms_norm softmax _softmax log_softmax _log_softmax "
        "_prelu_kernel prelu hardswish relu6 rsub softplus log_sigmoid_forward threshold channel_shuffle "
        "native_channel_shuffle _transformer_encoder_layer_fwd"
    )
)
"""Operators beside the pointwise ones that keep the places of their first argument's cells."""
MAKING = frozenset(
    _names("new_zeros new_ones new_full new_empty zeros_like ones_like full_like empty_like rand_like randn_like")
)
"""What these return says nothing of what they were given."""
RULES: dict[str, Rule] = {
    **dict.fromkeys(_names("convolution _convolution conv1d conv2d conv3d"), convolution),
    **dict.fromkeys(
        _names(
            "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d "
            "avg_pool3d"
        ),
        pool,
    ),
    **dict.fromkeys(
        _names(
            "adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool3d "
            "adaptive_max_pool2d adaptive_max_pool3d"
        ),
        adaptive_pool,
    ),
    **dict.fromkeys(
        _names(
            "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
            "_upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa "
            "upsample_bicubic2d _upsample_bicubic2d_aa upsample_trilinear3d"
        ),
        resize,
    ),
    **dict.fromkeys(
        _names(
            "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
            "replication_pad3d"
        ),
        pad,
    ),
    "aten::slice": _slice,
    **dict.fromkeys(_names("narrow split split_with_sizes chunk"), _part),
    "aten::select": _select,
    "aten::unbind": _unbind,
    "aten::flip": _flip,
    "aten::roll": _roll,
    "aten::permute": _permute,
    **dict.fromkeys(_names("transpose t"), _transpose),
    "aten::unsqueeze": _unsqueeze,
    "aten::squeeze": _squeeze,
    **dict.fromkeys(_names("view _unsafe_view reshape _reshape_alias flatten unflatten"), _view),
    "aten::expand": _expand,
    "aten::repeat": _repeat,
    "aten::pixel_shuffle": pixel_shuffle,
    "aten::pixel_unshuffle": pixel_unshuffle,
    "aten::im2col": columns,
    "aten::unfold": unfold,
    "aten::linear": _linear,
    **dict.fromkeys(
        _names(
            "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu _native_multi_head_attention "
            "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
            "_scaled_dot_product_cudnn_attention _scaled_dot_product_attention_math"
        ),
        _attend,
    ),
    **dict.fromkeys(_names("mean sum amax amin max min var std logsumexp linalg_vector_norm norm"), _reduce),
}
"""By the operator's name, for in-place ones without their last underscore."""
OF_SEVERAL: dict[str, Callable[[Operation], Places]] = {
    **dict.fromkeys(_names("cat stack"), _concatenate),
    **dict.fromkeys(_names("mm bmm addmm baddbmm matmul"), _product),
    **dict.fromkeys(_names("grid_sampler grid_sampler_2d grid_sampler_3d cudnn_grid_sampler"), _sampled),
    "aten::copy": _copy,
}
"""Rules in which the first argument is one of several."""
PARTS = frozenset(_names("slice narrow split split_with_sizes chunk"))


def output_places(op: Operation, known: list[Places], pointwise_operator: bool) -> Places:
    """Where the cells of an operator's output lie; ``known`` are the places of its tensors, where there are any."""
    if op.name in OF_SEVERAL:
        return _checked(OF_SEVERAL[op.name](op), op)
    if pointwise_operator:
        return _checked(pointwise(op, known), op)
    places = op.places(op.args[0]) if op.args else None
    if isinstance(places, Pieces):
        if op.name in KEEPING and op.out.shape == op.args[0].shape:
            return places
        return _of_pieces(op, places)
    if not isinstance(places, Axes):
        return None
    if op.name in KEEPING:
        return places if op.out.shape == op.args[0].shape else None
    rule = RULES.get(op.name)
    return None if rule is None else _checked(rule(op, places), op)


def _checked(places: Places, op: Operation) -> Places:
    """None for axes of another shape than the output's: then the rule did not fit this call."""
    return places if not isinstance(places, Axes) or places.shape == tuple(op.out.shape) else None


def _of_pieces(op: Operation, pieces: Pieces) -> Places:
    last = op.args[0].ndim - 1
    if op.name == "aten::linear" and pieces.dim != last:
        rows = tuple((size, one and one.absorbed(last, op.out.shape[-1])) for size, one in pieces.pieces)
        return Pieces(pieces.dim, rows)
    index = 1 if op.name in ("aten::slice", "aten::narrow") else 2
    if op.name not in PARTS or op.dim(index) != pieces.dim or op.arg(4, "step", 1) != 1:
        return None
    start = _start(op, op.args[0].shape[pieces.dim])
    return _checked(pieces.narrowed(start, op.out.shape[pieces.dim]), op)


def has_rule(name: str, pointwise_operator: bool) -> bool:
    """Whether an operator has a rule, or is seen for another reason."""
    known = name in KEEPING or name in RULES or name in OF_SEVERAL or name in MAKING
    return pointwise_operator or known or not name.startswith("aten::")
