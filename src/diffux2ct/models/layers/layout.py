"""channels_last_3d: how volumes lie in memory where 3D convolutions are fast."""

import torch
from torch import Tensor


def is_channels_last_3d(x: Tensor) -> bool:
    """True where a convolution of `x` [b, c, d, h, w] returns channels_last_3d."""
    return x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()


def channels_last_3d(x: Tensor) -> Tensor:
    """[b, c, d, h, w] in channels_last_3d; itself where it is so already, or is no batch of volumes.

    Of one channel both formats are the same memory, and PyTorch would take it for contiguous. It gets strides here
    that say channels_last_3d, without a copy, so that a convolution of it returns that format.
    """
    if x.ndim != 5:
        return x
    if x.shape[1] == 1:
        return x[:, 0].contiguous().unsqueeze(-1).movedim(-1, 1)
    return x.contiguous(memory_format=torch.channels_last_3d)


def concatenate(*features: Tensor) -> Tensor:
    """Volumes side by side in their channels, in the dtype and memory format of the first that has any."""
    first, *rest = (f for f in features if f.shape[1])
    if not rest:
        return first
    parts = [first, *(f.to(first.dtype) for f in rest)]
    if is_channels_last_3d(first):
        # With the channels as last axis, parts of another layout are copied once, straight into the result.
        return torch.cat([part.movedim(1, -1) for part in parts], dim=-1).movedim(-1, 1)
    return torch.cat(parts, dim=1)
