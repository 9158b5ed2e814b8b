"""Nulls: maps without information on the photo, or only on its centre or on the detected boxes."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array
from torch import nn

from ..fields.cell_maps import CellMaps, sample_grid
from ..fields.viewpoint import divergence

NULLS = ("fresh", "shuffled", "noise", "centre", "zero", "filled")
"""Fresh offset convolutions, or attention as it begins training; another image's offsets; noise of the same spectrum;
the photo's centre; no offsets; the detected boxes, filled."""
NAMES = {
    "field": "the offsets",
    "fresh": "fresh offsets",
    "shuffled": "another photo's offsets",
    "noise": "noise",
    "centre": "the photo's centre",
    "zero": "no offsets",
    "filled": "the detected boxes, filled",
}
MEANING = {
    "field": "the offsets",
    "fresh": "the same network with freshly drawn offset convolutions; attention as it begins training",
    "shuffled": "the offsets that another image had",
    "noise": "noise with the offsets' own spectrum",
    "centre": "the photo's centre, whatever is on it",
    "zero": "no offsets at all: chance",
    "filled": "the detected boxes, filled; for comparison",
}


def shuffled(maps: CellMaps, other: CellMaps) -> CellMaps:
    """The maps of another image, stretched to the cells of this one."""
    y, x = (np.linspace(0, there - 1, here) for there, here in zip(other.div.shape, maps.div.shape, strict=True))
    down, across, div, height, width = sample_grid(
        np.stack([other.d_f[..., 0], other.d_f[..., 1], other.div, other.height, other.width]), y, x
    )
    return CellMaps(np.stack([down, across], axis=-1), div, height, width, maps.origin, maps.step, maps.regular)


def noise(maps: CellMaps, random: np.random.Generator, per_cell: tuple[float, float]) -> CellMaps:
    """Noise with the power spectra, cross spectra and means of the maps: each wave gets one random phase.

    ``per_cell`` are the photo px (y, x) of an input cell, for the divergence. (Prichard and Theiler, Phys. Rev. Lett.
    73, 951, 1994, in two dimensions.)
    """
    h, w = maps.div.shape
    phases = np.angle(np.fft.fft2(random.standard_normal((h, w))))
    # The mean and the waves that are their own mirror images are real, and keep their phase.
    phases[0, 0] = 0.0
    stack = np.stack([maps.d_f[..., 0], maps.d_f[..., 1], maps.height, maps.width])
    waved = np.fft.ifft2(np.fft.fft2(stack) * np.exp(1j * phases)).real
    d_f = np.stack([waved[0], waved[1]], axis=-1)
    stride = tuple(step / cell for step, cell in zip(maps.step, per_cell, strict=True))
    cells = torch.from_numpy(d_f / np.array(per_cell))
    div = divergence(cells, (round(stride[0]), round(stride[1]))).numpy()
    return CellMaps(d_f, div, waved[2], waved[3], maps.origin, maps.step, maps.regular)


def plain_grid(size: tuple[int, int], across: int = 64) -> tuple[CellMaps, Float[Array, "h w 2"]]:
    """Empty maps over a photo of ``size`` (h, w) px, and the centres of their cells."""
    step = max(size) / across
    shape = tuple(max(2, round(length / step)) for length in size)
    steps = (size[0] / shape[0], size[1] / shape[1])
    blank = np.zeros(shape)
    maps = CellMaps(np.zeros((*shape, 2)), blank, blank, blank, (steps[0] / 2, steps[1] / 2), steps)
    return maps, maps.centres()


def zero(size: tuple[int, int]) -> CellMaps:
    """No offsets: every metric is at chance."""
    return plain_grid(size)[0]


def centre(size: tuple[int, int]) -> CellMaps:
    """Every cell points to the photo's centre; the score falls with the distance, in units of the photo's sides.

    Its zero, where a field's divergence would change sign, leaves half of the photo inside, as a field without mean
    does. Circles are all alike.
    """
    maps, places = plain_grid(size)
    middle = np.array(size) / 2
    relative = ((places - middle) / np.array(size)) ** 2
    distance = relative.sum(axis=-1)
    same = np.full(maps.div.shape, np.sqrt(size[0] * size[1]) / 4)
    return CellMaps(middle - places, distance - 0.5 / np.pi, same, same, maps.origin, maps.step)


LEAST_SCORE = 0.3
"""Smallest score of a box whose places get a positive score."""


def filled(size: tuple[int, int], boxes: Float[Array, "d 4"], scores: Float[Array, " d"]) -> CellMaps:
    """Each cell has the score, centre, height and width of the best detected box around it."""
    maps, places = plain_grid(size, 96)
    shape = maps.div.shape
    best, d_f = np.zeros(shape), np.zeros((*shape, 2))
    height, width = np.zeros(shape), np.zeros(shape)
    for (x0, y0, x1, y1), score in sorted(zip(boxes.tolist(), scores.tolist(), strict=True), key=lambda pair: pair[1]):
        rows, columns = np.searchsorted(places[:, 0, 0], (y0, y1)), np.searchsorted(places[0, :, 1], (x0, x1))
        inside = slice(*rows), slice(*columns)
        best[inside], height[inside], width[inside] = score, y1 - y0, x1 - x0
        d_f[inside] = np.array([(y0 + y1) / 2, (x0 + x1) / 2]) - places[inside]
    return CellMaps(d_f, LEAST_SCORE - best, height, width, maps.origin, maps.step)


def fresh_copy(model: nn.Module, convolutions: tuple[str, ...], seed: int = 0) -> nn.Module:
    """A copy of ``model`` with new random weights and biases in the named convolutions, as by ``nn.Conv2d``."""
    copied = copy.deepcopy(model)
    random = torch.Generator().manual_seed(seed)
    for name in convolutions:
        convolution = copied.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        bound = convolution.weight[0].numel() ** -0.5  # Kaiming's uniform with a = √5, PyTorch's default
        for parameter in (convolution.weight, convolution.bias):
            if parameter is not None:
                parameter.data.copy_((torch.rand(parameter.shape, generator=random) * 2 - 1) * bound)
    return copied


def as_strong(maps: CellMaps, like: CellMaps) -> CellMaps:
    """Maps scaled so that the rms of d_f equals that of ``like``; only the pattern differs."""
    length = float(np.sqrt((maps.d_f**2).mean()))
    if length <= 0:
        return maps
    factor = float(np.sqrt((like.d_f**2).mean())) / length
    return replace(
        maps, d_f=maps.d_f * factor, div=maps.div * factor, height=maps.height * factor, width=maps.width * factor
    )
