"""Attribute one output to the points of deformable attention, through their weights (Zhu et al., ICLR 2021, Eq. 2-3).

A head's result is z = Σ_n A_n · v(P_n), with the weights A and what the points read, v(P_n). Ones multiply the weights,
and their gradient is a_n = A_n · ⟨∂y/∂z, v(P_n)⟩, exact, for each point of each query and head.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..fields.attention import AttentionField


@dataclass(frozen=True)
class AttentionAttribution:
    """What the points of one call of deformable attention add to the explained output y.

    For each of q queries, h heads and p points: a_n = A_n · ⟨∂y/∂z, v(P_n)⟩, where z is the head's result before the
    module's last projection, v(P_n) the value that point n reads and A_n its weight. The a_n of a query and head sum to
    ⟨∂y/∂z, z⟩. That the weights of a head sum to 1 is left out of it.

    Example:
        >>> why = ds.explain(model, pixels, of=lambda out: out.logits[0, 17, 3])
        >>> layer = list(why.attention.values())[-1]
        >>> layer.by_query().abs().argmax()        # the query itself, in a last layer
        tensor(17)
    """

    field: AttentionField
    """The layer's points, of one image."""
    points: Float[Tensor, "q h p"]
    """a_n, in units of y."""

    @property
    def total(self) -> float:
        """The sum over all queries."""
        return float(self.points.double().sum())

    def by_query(self) -> Float[Tensor, " q"]:
        """Each query's sum over its heads and points."""
        return self.points.sum(dim=(1, 2))

    def by_head(self) -> Float[Tensor, " h"]:
        """Each head's sum over queries and points."""
        return self.points.sum(dim=(0, 2))

    def by_level(self) -> Float[Tensor, " l"]:
        """Each map's sum over queries, heads and the points that read it."""
        found = self.points.new_zeros(len(self.field.level_sizes))
        return found.index_add(0, self.field.level, self.points.sum(dim=(0, 1)))

    def strongest_query(self) -> int:
        """The query whose points' magnitudes sum to most: in a decoder's last layer, the one that made the output."""
        return int(self.points.abs().sum(dim=(1, 2)).argmax())

    def places(self) -> Float[Tensor, "q h p 2"]:
        """Where the points lie, (y, x) in photo px."""
        return self.field.to_pixels(self.field.points)[0]
