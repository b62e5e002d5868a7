"""X-rays -> 3D conditions h^(i): implicitly (the paper), by expanding (its baseline), or not at all."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffux2ct.errors import UserError
from diffux2ct.models.implicit_decoder import ImplicitDecoder
from diffux2ct.models.layers.blocks import conv_norm_act
from diffux2ct.models.triplane import PlaneDecoder, PlaneEncoder, TriplaneGenerator
from diffux2ct.types import VIEWS, Plane, Xrays

Conditions = list[Float[Tensor, "b _ _ _ _"]]  # every scale has its own channels and sides


class Conditioning(nn.Module, ABC):
    """X-rays in, feature volumes h^(1..N) out: h^(i) is [b, channels[i], D, H, W] / 2^i, finest first.

    Neither the noisy volume nor the step enters, so a sampler computes the conditions once per volume.
    """

    channels: tuple[int, ...]
    takes: tuple[str, ...] = VIEWS  # names of the views of the X-rays

    @abstractmethod
    def forward(self, xrays: Xrays, z: Plane | None = None) -> Conditions:
        """X-rays "frontal" [b, 1, D, W] and "lateral" [b, 1, D, H] in [-1, 1], or other views -> h^(1..N).

        z: see `sample_perturbation`. None draws a fresh one while training, and is 0 in evaluation.
        """

    def sample_perturbation(
        self, batch: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Tensor | None:
        """A Gaussian z to hold fixed over the steps of one volume; None where the conditioning takes none."""
        return None


class ImplicitConditioning(Conditioning):
    """The implicit conditioning mechanism (Sec. 3.2): tri-planes, and one implicit decoder per scale (Eq. 6).

    Args:
        size: voxels per side, or (D, H, W).
        channels: C_h of each scale, finest first.
        plane_channels ... num_blocks, uv_fusion, fusion, learnable_embedding, dropout: see `TriplaneGenerator`.
        hidden: width of the implicit decoder; None is plane_channels.
        checkpoint_decoder: recompute the voxel activations in backward (1 GiB in fp32 at 128^3, hidden 64).
    """

    def __init__(
        self,
        size: int | Sequence[int],
        channels: Sequence[int] = (32, 64, 128),
        plane_channels: int = 64,
        encoder_channels: Sequence[int] = (64, 128, 256, 256),
        num_blocks: int = 2,
        hidden: int | None = None,
        uv_fusion: str = "literal",
        fusion: str = "modulators",
        learnable_embedding: bool = True,
        checkpoint_decoder: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.channels, self.checkpoint_decoder = tuple(channels), checkpoint_decoder
        self.generator = TriplaneGenerator(
            size,
            plane_channels,
            encoder_channels,
            num_blocks,
            num_scales=len(self.channels),
            uv_fusion=uv_fusion,
            fusion=fusion,
            learnable_embedding=learnable_embedding,
            dropout=dropout,
        )
        self.size = self.generator.size
        self.decoders = nn.ModuleList(
            ImplicitDecoder(plane_channels, hidden or plane_channels, width) for width in self.channels
        )

    def forward(self, xrays: Xrays, z: Plane | None = None) -> Conditions:
        """Tri-planes per scale, then Eq. 6 on each."""
        planes = self.generator(xrays["frontal"], xrays["lateral"], z)
        if self.checkpoint_decoder and torch.is_grad_enabled():
            return [
                checkpoint(decoder, *triple, use_reentrant=False)
                for decoder, triple in zip(self.decoders, planes, strict=True)
            ]
        return [decoder(*triple) for decoder, triple in zip(self.decoders, planes, strict=True)]

    def sample_perturbation(
        self, batch: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Tensor | None:
        """[b, *generator.perturbation_shape], drawn on the generator's device; None without an embedding."""
        if self.generator.embedding is None:
            return None
        shape = (batch, *self.generator.perturbation_shape)
        where = device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=where).to(device)


class ExpandConditioning(Conditioning):
    """Table 3's Baseline (as X2CT-GAN): 2D features of each view, repeated along its ray axis, and added.

    h^(i) = expand_y(f1^(i)) + expand_x(f2^(i)); a siamese 2D encoder-decoder, then a 1x1 projection to C_h
    (on the planes: it commutes with repeating). No interleaving, third plane, modulators or MLP.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128),
        plane_channels: int = 64,
        encoder_channels: Sequence[int] = (64, 128, 256, 256),
        num_blocks: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__()
        if len(channels) > len(encoder_channels):
            raise UserError(
                f"encoder_channels: {len(channels)} scales need {len(channels)} levels or more; lengthen it"
            )
        self.channels = tuple(channels)
        self.stem = conv_norm_act(2, 1, plane_channels)
        self.encoder = PlaneEncoder(plane_channels, encoder_channels, num_blocks, dropout)
        self.decoder = PlaneDecoder(encoder_channels, plane_channels, dropout)
        self.projections = nn.ModuleList(nn.Conv2d(plane_channels, width, 1) for width in self.channels)

    def features(self, xray: Tensor) -> list[Tensor]:
        """f^(i) of one view (or of both, batched), projected to C_h, finest first, in channels_last."""
        planes = self.decoder(self.encoder(self.stem(xray)))[: len(self.channels)]
        projected = (project(plane) for project, plane in zip(self.projections, planes, strict=True))
        # A copy of planes here; the sums of both views then lie in channels_last_3d, as the implicit decoder's do.
        return [plane.contiguous(memory_format=torch.channels_last) for plane in projected]

    def forward(self, xrays: Xrays, z: Plane | None = None) -> Conditions:
        front, side = self.features(xrays["frontal"]), self.features(xrays["lateral"])
        return [f1[:, :, :, None, :] + f2[:, :, :, :, None] for f1, f2 in zip(front, side, strict=True)]


class NoConditioning(Conditioning):
    """Unconditional: feature volumes of zero channels, so that the denoiser needs no branch for it."""

    def __init__(self, channels: Sequence[int] = (0, 0, 0)):
        super().__init__()
        self.channels = tuple(channels)

    def forward(self, xrays: Xrays, z: Plane | None = None) -> Conditions:
        frontal, lateral = xrays["frontal"], xrays["lateral"]
        batch, _, depth, width = frontal.shape
        size, scales = (depth, lateral.shape[3], width), range(len(self.channels))
        return [frontal.new_zeros((batch, 0, *(side // 2**i for side in size))) for i in scales]
