"""Data consistency: an estimate of the CT is moved toward one whose own X-rays are the measured ones, in a few steps.

A step goes down the gradient of |A(x) - y|^2, A the projector that made the X-rays y, as far as is best if A is linear
on the way. Two X-rays fix few of a CT's numbers: the others stay as the network gave them. Air stays air, as its
voxels (below -800 HU) do not move.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffux2ct.data.io.camera_file import CameraFile
from diffux2ct.data.prepared.augment import Acquisition
from diffux2ct.errors import UserError
from diffux2ct.intensity import AIR_BELOW_HU, Window, denormalize_hu, normalize_xray
from diffux2ct.types import Volume
from diffux2ct.xray.attenuation import ATTENUATIONS
from diffux2ct.xray.camera import Camera
from diffux2ct.xray.effects import XrayEffects
from diffux2ct.xray.pose import Pose

if TYPE_CHECKING:
    from diffux2ct.data.prepared.dataset import PreparedDataset

Correction = Callable[[Volume], Volume]  # estimates of a batch's CTs to consistent ones in [-1, 1]
_PROBE = 1e-2  # largest change, in [-1, 1], of the trial step that measures how X-rays follow


@dataclass(frozen=True)
class Consistency:
    """Settings of data consistency.

    steps: down the gradient, for each estimate of the CT. mismatch: for a control, the X-rays are taken to be of
    another projector (its name) or of a patient who lay so many mm farther along each axis; None: as they are.
    """

    steps: int
    mismatch: str | float | int | None = None

    def __str__(self) -> str:
        return f"{self.steps}" if self.mismatch is None else f"{self.steps}-{self.mismatch}"

    @classmethod
    def wanted(cls, steps: int | None, mismatch: str | float | int | None = None) -> "Consistency | None":
        """None for no steps, which leaves everything as it is."""
        return cls(steps, mismatch) if steps else None

    def record(self) -> dict[str, Any]:
        """For metrics.json and reconstruct.json."""
        own = {} if self.mismatch is None else {"consistency_mismatch": self.mismatch}
        return {"consistency": self.steps} | own

    def for_cases(self, dataset: "PreparedDataset", indices: Sequence[int], xrays: Mapping[str, Tensor]) -> Correction:
        """The correction for a batch of cases of a prepared folder. xrays: of `bound`."""
        taken = [dataset.acquisition(index, f"consistency={self.steps}") for index in indices]
        return self.bound(taken, xrays, dataset.xray_normalization, dataset.window, dataset.reduced)

    def for_files(
        self,
        cameras: Mapping[str, CameraFile],
        xrays: Mapping[str, Tensor],
        xray_normalization: str,
        window: Window,
        size: int,
        spacing: float,
    ) -> Correction:
        """The correction for X-rays whose camera.json says how they were taken. Others: as of `bound`.

        size, spacing: of the CT, voxels per side and mm. UserError for X-rays without that file.
        """
        self._check_absolute(xray_normalization)
        known = next(iter(cameras.values()), None)
        if (
            known is None
            or set(cameras) != set(xrays) - {"camera"}
            or len({file.path for file in cameras.values()}) > 1
        ):
            raise UserError(
                f"consistency={self.steps}: the camera of these X-rays is unknown; put all of them beside the "
                "camera.json of synthesize_drr.py, or leave it out"
            )
        record = known.record
        if record.get("effects") not in (None, json.loads(json.dumps(asdict(XrayEffects())))):
            raise UserError(
                f"{known.path}: its X-rays have effects of an exposure, which consistency={self.steps} does not model; "
                "write them again without effects, or leave it out"
            )
        try:
            settings = dict(record["attenuation"])
            attenuation = ATTENUATIONS[settings.pop("name")](**settings)
            poses = {view: Pose.from_dict(record["pose"][view]) for view in cameras}
            taken = Acquisition(Camera.from_dict(known.geometry), record["projector"], attenuation, poses, spacing)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{known.path}: does not say how its X-rays were made, which consistency={self.steps} needs; write "
                "them again with synthesize_drr.py"
            ) from error
        return self.bound([taken], xrays, xray_normalization, window, size < known.size)

    def bound(
        self,
        taken: Sequence[Acquisition],
        xrays: Mapping[str, Tensor],
        xray_normalization: str,
        window: Window,
        reduced: bool,
    ) -> Correction:
        """The correction for a batch.

        taken: of each sample, with the voxels of the estimates. xrays: of each view [B, 1, n, n] in [-1, 1], as the
        model sees them. reduced: see `Acquisition.render`. UserError where the X-rays' absolute values are unknown.
        """
        self._check_absolute(xray_normalization)
        projections = [
            _Projection(self._mistaken(how), reduced, window, {view: xrays[view][i, 0] for view in how.poses})
            for i, how in enumerate(taken)
        ]

        def correct(volume: Volume) -> Volume:
            # Gradients within inference, in fp32 under autocast, of copies that may have them.
            with torch.inference_mode(False), torch.autocast(volume.device.type, enabled=False):
                cubes = [cube.clone().float().clamp(-1, 1) for cube in volume.detach()[:, 0]]
                moved = [
                    projection.follow(cube, self.steps) for projection, cube in zip(projections, cubes, strict=True)
                ]
                return torch.stack(moved)[:, None]

        return correct

    def _check_absolute(self, xray_normalization: str) -> None:
        if xray_normalization != "fixed":
            raise UserError(
                f"consistency={self.steps}: compares absolute line integrals, which X-rays of "
                f"xray_normalization={xray_normalization} have lost; use a model that was trained with "
                "dataset.xray_normalization=fixed"
            )

    def _mistaken(self, how: Acquisition) -> Acquisition:
        if self.mismatch is None:
            return how
        if self.mismatch == how.projector:
            raise UserError(
                f"consistency_mismatch={self.mismatch}: the projector of these X-rays; choose another, or leave it out"
            )
        if isinstance(self.mismatch, str):
            return replace(how, projector=self.mismatch)
        farther = Pose(shift_mm=(self.mismatch, self.mismatch, self.mismatch))
        return replace(how, poses={view: pose.moved(farther) for view, pose in how.poses.items()})


@dataclass(frozen=True)
class _Projection:
    """One sample's measured X-rays [n, n] in [-1, 1], and how they were taken."""

    how: Acquisition
    reduced: bool
    window: Window
    measured: Mapping[str, Tensor]

    def follow(self, x: Float[Tensor, "n n n"], steps: int) -> Float[Tensor, "n n n"]:
        """``x`` after so many steps, or before the first that would not lower the residual."""
        matter = denormalize_hu(x, self.window) > AIR_BELOW_HU
        residual, down = self._residual(x)
        for _ in range(steps):
            down = down * matter
            largest = down.abs().max()
            if largest == 0:
                break
            # Find how far to go from a small step, and go.
            share = _PROBE / largest
            change = (self._residual(x + share * down, slope=False)[0] - residual) / share
            far = -(residual * change).sum() / change.square().sum()
            moved = (x + far * down).clamp(-1, 1)
            left, next_down = self._residual(moved)
            if not left.square().sum() < residual.square().sum():
                break
            x, residual, down = moved, left, next_down
        return x

    def _residual(self, x: Tensor, slope: bool = True) -> tuple[Float[Tensor, "view n n"], Tensor]:
        """A(x) - y in units of the X-rays, and half the negative gradient of its squares if ``slope``."""
        with torch.set_grad_enabled(slope):
            x = x.detach().requires_grad_(slope)
            images = self.how.render(denormalize_hu(x, self.window), self.reduced)
            own = [normalize_xray(image, "fixed") - self.measured[view].to(image) for view, image in images.items()]
            residual = torch.stack(own)
        if not slope:
            return residual, x
        (gradient,) = torch.autograd.grad(residual, x, residual.detach())
        return residual.detach(), -gradient
