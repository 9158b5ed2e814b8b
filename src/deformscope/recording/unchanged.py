"""Run a model without leaving a trace in it: its modes, its buffers and the random numbers that come next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back, after the block, the model's buffers (running statistics and the like) and torch's random numbers."""
    kept = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            for module, name, buffer, value in kept:
                if not buffer.equal(value):  # graphs of others may have saved it
                    with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                        buffer.copy_(value)
                setattr(module, name, buffer)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; after the block every module's mode is as before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        # Not model.train(): frozen parts stay in eval mode while the rest trains.
        for module, training in modes:
            module.training = training
