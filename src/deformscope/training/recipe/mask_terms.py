"""What the masks of a recipe's network are made of."""

from __future__ import annotations

from ...detectors.dense.config import check_mask_terms
from ...detectors.dense.masks import OF_OFFSETS, STANDARD, MaskTerm
from ...errors import DeformscopeError

BY_TERMS = ("small", "dense")
"""Architectures whose masks are made of terms."""


def chosen_terms(
    architecture: str, masks: bool, terms: tuple[MaskTerm, ...] | None, offset_mode: str
) -> tuple[MaskTerm, ...]:
    """The terms of ``network.masks`` and ``network.mask_terms``; none where masks are made in another way, or not.

    Raises DeformscopeError for terms that cannot be.
    """
    if masks and architecture not in (*BY_TERMS, "dense_rcnn"):
        raise DeformscopeError(
            f"network.masks: a setting of small, dense and dense_rcnn, not of {architecture}; leave it out"
        )
    if not masks or architecture not in BY_TERMS:
        if terms is not None:
            raise DeformscopeError("network.mask_terms: of small and dense with network.masks=true; leave them out")
        return ()
    if terms == ():
        raise DeformscopeError("network.mask_terms: []; expected at least one, or network.masks=false")
    terms = STANDARD if terms is None else terms
    check_mask_terms(terms, "network.mask_terms")
    of_offsets = [term for term in terms if term in OF_OFFSETS]
    if of_offsets and offset_mode == "none":
        raise DeformscopeError(
            f"network.mask_terms: {of_offsets[0]!r} is made of offsets, and network.offset_mode is 'none'; leave it out"
        )
    return terms


def check_hidden(terms: tuple[MaskTerm, ...], hidden: int) -> None:
    """Raise DeformscopeError for a ``network.mask_hidden`` without a term that has convolutions."""
    if hidden and not {"unary", "dynamic"} & set(terms):
        raise DeformscopeError(
            f"network.mask_hidden: {hidden}; only with 'unary' or 'dynamic' among network.mask_terms; leave it out"
        )
    if hidden % 8:
        raise DeformscopeError(f"network.mask_hidden: {hidden}; expected a multiple of 8")
