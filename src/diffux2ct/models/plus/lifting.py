"""3D features from X-rays: planes of a 2D encoder-decoder, lifted along the rays of the case's own camera."""

from collections.abc import Sequence

from torch import Tensor, nn

from diffux2ct.errors import UserError
from diffux2ct.models.conditioning import Conditioning, Conditions
from diffux2ct.models.layers.blocks import conv_norm_act
from diffux2ct.models.layers.layout import concatenate
from diffux2ct.models.plus.rays import along_rays, turned
from diffux2ct.models.triplane import PlaneDecoder, PlaneEncoder
from diffux2ct.types import Plane, Xray, Xrays
from diffux2ct.xray.pose import view_names


class PlaneLift(nn.Module):
    """A plane of features -> the cube, at one scale, in two ways side by side.

    ``along`` channels are the same at each voxel of a ray. ``depth`` channels differ: a 1-wide convolution gives each
    pixel as many of them for every depth (channels to depth), so that the network can say where on the ray things are.
    """

    def __init__(self, view: str, in_channels: int, along: int, depth: int, size: int) -> None:
        super().__init__()
        self.view, self.size = view, size
        self.along = nn.Conv2d(in_channels, along, 1) if along else None
        self.depth = nn.Conv2d(in_channels, depth * size, 1) if depth else None

    def forward(self, plane: Plane, camera: Tensor | None) -> Tensor:
        """[b, in, size, size] -> [b, along + depth, size, size, size]."""
        lifted = []
        if self.along is not None:
            lifted.append(along_rays(self.along(plane)[:, :, None], camera, self.view))
        if self.depth is not None:
            planes = self.depth(plane).unflatten(1, (-1, self.size))
            lifted.append(along_rays(planes, camera, self.view))
        return turned(concatenate(*lifted), self.view)


class ViewLift(nn.Module):
    """One X-ray -> feature volumes at several scales, finest first."""

    def __init__(
        self,
        view: str,
        size: int,
        plane_channels: int,
        encoder_channels: Sequence[int],
        num_blocks: int,
        channels: Sequence[tuple[int, int]],
        dropout: float,
    ) -> None:
        super().__init__()
        self.stem = conv_norm_act(2, 1, plane_channels)
        self.encoder = PlaneEncoder(plane_channels, encoder_channels, num_blocks, dropout)
        self.decoder = PlaneDecoder(encoder_channels, plane_channels, dropout)
        self.lifts = nn.ModuleList(
            PlaneLift(view, plane_channels, along, depth, size // 2**level)
            for level, (along, depth) in enumerate(channels)
        )

    def forward(self, xray: Xray, camera: Tensor | None) -> list[Tensor]:
        """[b, 1, D, n] -> [b, along + depth, D, H, W] / 2^i."""
        planes = self.decoder(self.encoder(self.stem(xray)))
        return [lift(plane, camera) for lift, plane in zip(self.lifts, planes, strict=False)]


class LiftedConditioning(Conditioning):
    """Each view's planes lifted along its own rays, all views side by side: h^(1..N), finest first.

    A view has the same width in every model: half of ``channels``, which are those of two views. N views have N / 2
    times as many.

    Args:
        size: voxels per side, divisible by 2^(levels - 1).
        channels: C_h of each scale of two views, finest first; but for the X-rays themselves a multiple of 4 where both
            ways are on, else of 2.
        plane_channels, encoder_channels, num_blocks, dropout: of each view's 2D encoder and decoder.
        along, depth: the two ways of lifting (``PlaneLift``); at least one.
        xray: one channel a view of the finest scale is the X-ray itself, lifted.
        cone: False lifts as if all cameras were parallel.
        views: azimuths of the X-rays in degrees, see `diffux2ct.xray.pose`.
    """

    def __init__(
        self,
        size: int,
        channels: Sequence[int] = (32, 64, 128),
        plane_channels: int = 64,
        encoder_channels: Sequence[int] = (64, 128, 256, 256),
        num_blocks: int = 2,
        dropout: float = 0.0,
        along: bool = True,
        depth: bool = True,
        xray: bool = False,
        cone: bool = True,
        views: Sequence[float | int] = (0, 90),
    ) -> None:
        super().__init__()
        self.takes = view_names(views, "lifting.views")
        factor = 2 ** (len(encoder_channels) - 1)
        if size % factor:
            raise UserError(f"dataset.size={size}: {len(encoder_channels)} encoder levels need a multiple of {factor}")
        ways = along + depth
        if not ways:
            raise UserError("lifting.along=false and lifting.depth=false: leave one of them on")
        learned = [channels[0] - 2 * xray, *channels[1:]]
        if any(width % (2 * ways) or width < 1 for width in learned) or len(channels) > len(encoder_channels):
            besides = " (the first: and 2 more)" if xray else ""
            raise UserError(
                f"lifting.channels={list(channels)}: give multiples of {2 * ways}{besides}, at most "
                f"{len(encoder_channels)} of them"
            )
        self.channels = tuple(width // 2 * len(self.takes) for width in channels)
        self.size, self.xray, self.cone = size, xray, cone
        each = [(width // (2 * ways) * along, width // (2 * ways) * depth) for width in learned]
        self.views = nn.ModuleDict(
            {
                view: ViewLift(view, size, plane_channels, encoder_channels, num_blocks, each, dropout)
                for view in self.takes
            }
        )

    def forward(self, xrays: Xrays, z: Plane | None = None) -> Conditions:
        """X-rays in [-1, 1], and their "camera" [b, 4] on the CPU (``Camera.panel_map``); UserError without it."""
        if missing := [view for view in self.takes if view not in xrays]:
            raise UserError(f"xrays: no {' or '.join(missing)}, which this model lifts; give dataset.views as trained")
        camera = xrays.get("camera") if self.cone else None
        if self.cone and camera is None:
            raise UserError(
                "xrays: no 'camera', along whose rays this model lifts; add Camera.panel_map of the X-rays' camera, "
                "[batch, 4] on the CPU"
            )
        lifted = [view(xrays[name], camera) for name, view in self.views.items()]
        finest, *coarser = [concatenate(*scale) for scale in zip(*lifted, strict=True)]
        if self.xray:
            shown = [turned(along_rays(xrays[view][:, :, None], camera, view), view) for view in self.takes]
            finest = concatenate(finest, *shown)
        return [finest, *coarser]
