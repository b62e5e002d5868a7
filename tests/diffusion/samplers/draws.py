"""Noise for the samplers' tests."""

import torch


def noises(seed: int, shape=(1, 1, 8, 8, 8)):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator)
