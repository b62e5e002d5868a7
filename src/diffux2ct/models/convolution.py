"""A 3D convolution that can be trained in bfloat16 on a CPU, however small its input."""

import torch
from torch import Tensor, nn


class Conv3d(nn.Conv3d):
    """`torch.nn.Conv3d` that leaves CPU autocast where its input is smaller than its kernel.

    There the weight's gradient in bfloat16 is wrong, up to infinity (PyTorch 2.13 on AVX-512 bf16; in float32 it is
    right). Such inputs are a few voxels, so nothing is lost.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.Conv3d`."""
        small = any(side < width for side, width in zip(input.shape[2:], self.kernel_size, strict=True))
        if small and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)
