"""Shapes and axis conventions shared by every room.

Volumes are ``[B, C, D, H, W]`` in LPS: D = z toward Superior, H = y toward Posterior, W = x toward Left.
This is SimpleITK's array order, and what ``grid_sample`` calls (x, y, z) = (W, H, D). The paper's letters
differ: docs/method.md has the table.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

Volume = Float[Tensor, "b 1 d h w"]
FeatureVolume = Float[Tensor, "b _ d h w"]  # several scales and widths may meet in one signature
Xray = Float[Tensor, "b 1 v u"]
Plane = Float[Tensor, "b c r s"]
Xrays = Mapping[str, Tensor]  # {"frontal": [B, 1, D, W], "lateral": [B, 1, D, H]}

VIEWS = ("frontal", "lateral")

# Array axes of an unbatched [D, H, W] volume.
AXIS_Z, AXIS_Y, AXIS_X = 0, 1, 2
