"""3D augmentation: a batch's cubes are deformed and the X-rays of each are taken anew, on the batch's device.

A deformed cube is treated as a preparation treats one: whole HU, air around it, the case's own projector, attenuation
model and poses. Where the deformation reaches beyond the cube that was cut from the scan, the voxels of its faces go
on: air stays air there, and a body that the cut ends does not end a second time inside the cube.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from diffux2ct.arguments import NotNegative, Range, Share
from diffux2ct.data.prepared.writer import read_case
from diffux2ct.errors import UserError
from diffux2ct.intensity import Window, denormalize_hu, normalize_xray
from diffux2ct.seeding import derived_seed
from diffux2ct.types import VIEWS, Volume
from diffux2ct.xray.attenuation import ATTENUATIONS, AttenuationModel
from diffux2ct.xray.camera import Camera
from diffux2ct.xray.drr import PROJECTORS, render_pair
from diffux2ct.xray.effects import XrayRandomization
from diffux2ct.xray.pose import Pose, random_pose, random_poses, view_angle

_SALT = 8  # of a sample's deformation: noise and exposures come from the same seed


@dataclass(frozen=True)
class Deformation:
    """One draw of an augmentation.

    A point p of the deformed cube, mm about its centre, shows what lay at ``matrix`` (p + displacement(p)) + ``shift``;
    the displacement is a cubic B-spline with the coefficients ``knots`` [3, n, n, n], in distances between two knots.
    All in (x, y, z). poses: of each view, added to the case's. camera: factors of SAD and SID.
    """

    matrix: Float[np.ndarray, "3 3"]
    shift: Float[np.ndarray, "3"]
    knots: Float[np.ndarray, "3 n n n"]
    poses: Mapping[str, Pose]
    camera: tuple[float, float]


@dataclass(frozen=True)
class Augmentation:
    """Ranges of deformations: each number is uniform in +-its setting.

    rotation: degrees about each axis. scale: 0.1 is from 1/1.1 to 1.1 times the size. shear: mm per mm. shift: mm along
    each axis. mirror: the probability that left and right are exchanged.
    elastic: of the displacement's knots, a share of the distance between two; below 1/6 nothing can fold.
    cells: distances between knots along a side of the cube.
    pose_degrees, pose_mm: of the patient between the two exposures, one pose a view; the CT does not follow.
    camera: share of the source's distances to isocentre and panel.
    """

    rotation: Annotated[float, Range(0, 180)] = 10.0
    scale: Share = 0.1
    shear: Share = 0.05
    shift: NotNegative = 10.0
    mirror: Share = 0.5
    elastic: Annotated[float, Range(0, 0.16)] = 0.12
    cells: Annotated[int, Range(1, 32)] = 4
    pose_degrees: Annotated[float, Range(0, 45)] = 1.0
    pose_mm: NotNegative = 2.0
    camera: Annotated[float, Range(0, 0.5)] = 0.03

    def draw(self, seed: int, views: Sequence[str] = VIEWS) -> Deformation:
        """The deformation of a sample's seed; a setting changes no other's draw. views: that need a pose."""
        stream = np.random.default_rng(derived_seed(seed, _SALT))
        turn = random_pose(stream, self.rotation, self.shift)
        size, *slants = stream.uniform(-1, 1, 4)
        mirrored = stream.uniform() < self.mirror
        poses = random_poses(stream, self.pose_degrees, self.pose_mm)
        sad, sid = (1 + self.camera * stream.uniform(-1, 1, 2)).tolist()
        knots = self.elastic * stream.uniform(-1, 1, (3, *(self.cells + 3,) * 3))
        more = [view for view in views if view not in poses]
        poses |= random_poses(stream, self.pose_degrees, self.pose_mm, more)
        shear = np.eye(3)
        shear[np.triu_indices(3, 1)] = self.shear * np.asarray(slants)
        matrix = (1 + self.scale) ** size * turn.rotation() @ shear @ np.diag((-1 if mirrored else 1, 1, 1))
        return Deformation(matrix, np.asarray(turn.shift_mm), knots, poses, (sad, sid))


@dataclass(frozen=True)
class Acquisition:
    """The projection of a case's X-rays from its cube.

    poses: of the patient in each view that is projected. spacing: mm a voxel of the cube that is projected.
    """

    camera: Camera
    projector: str
    attenuation: str | AttenuationModel
    poses: Mapping[str, Pose]
    spacing: float

    @classmethod
    def of_case(
        cls, root: Path, case_id: str, spacing: float, purpose: str, views: Sequence[str] = VIEWS
    ) -> "Acquisition":
        """From case.json; UserError where the X-rays came with the scan, or their making is not described.

        purpose: the setting that projects anew, for that message. views: to project; straight where the case has none.
        """
        record = read_case(root, case_id) or {}
        known = {"camera_geometry": None, "projector": PROJECTORS, "attenuation": ATTENUATIONS}
        fault = "were stored with the scan" if record.get("xrays") == "stored" else ""
        for key, choices in known.items():
            if not fault and (not record.get(key) or (choices is not None and record[key] not in choices)):
                fault = f"are of {key}={record.get(key)} by its case.json"
        if fault:
            raise UserError(
                f"{root}: {purpose} projects X-rays anew as ours were, but those of {case_id} {fault}; leave it "
                "out, or prepare the scans again with rendered X-rays"
            )
        poses = {view: Pose.from_dict(values) for view, values in (record.get("poses") or {}).items()}
        return cls(
            Camera.from_dict(record["camera_geometry"]), record["projector"], record["attenuation"],
            {view: poses.get(view, Pose()) for view in views}, spacing,
        )  # fmt: skip

    def moved(self, draw: Deformation) -> "Acquisition":
        """The same with the camera and the patient a little elsewhere."""
        sad, sid = draw.camera
        camera = replace(self.camera, sad=self.camera.sad * sad, sid=self.camera.sid * sid)
        poses = {view: pose.moved(draw.poses[view]) for view, pose in self.poses.items()}
        return replace(self, camera=camera, poses=poses)

    def prepared(self, hu: Float[Tensor, "n n n"]) -> dict[str, Tensor]:
        """Line integrals [n, n] of a cube of whole HU, by view, as a preparation computes them."""
        return render_pair(
            hu, self.spacing, self.camera, len(hu),
            projector=self.projector, attenuation=self.attenuation, jitter=self.poses, views=tuple(self.poses),
        )  # fmt: skip

    def render(self, hu: Float[Tensor, "n n n"], reduced: bool) -> dict[str, Tensor]:
        """Line integrals [n, n] of a cube of whole HU, by view, with no more rays than that takes.

        reduced: the cube is smaller than the one whose X-rays were prepared and averaged. One ray a pixel then comes
        nearest to those means, since more of them smooth over what the voxels have averaged already.
        """
        camera, size = self.camera, len(hu)
        if reduced:
            camera = _coarser(camera, size)
        elif any(not pose.is_identity for pose in self.poses.values()):
            camera = _coarser(camera, 2 * size)  # rays through a patient who lies askew are summed one by one
        return replace(self, camera=camera).prepared(hu)


class Augmenter:
    """A batch -> the same with other bodies.

    ranges: of the deformations. acquisitions: of each case, by its index. reduced: the cubes are smaller than those of
    the prepared folder. window, xray_normalization, randomize: as of `PreparedDataset`.
    Raises UserError where a draw could bring the patient to the source or the panel.
    """

    def __init__(
        self,
        ranges: Augmentation,
        acquisitions: Sequence[Acquisition],
        size: int,
        reduced: bool,
        window: Window,
        xray_normalization: str,
        randomize: XrayRandomization | None = None,
    ) -> None:
        self.ranges, self.acquisitions = ranges, acquisitions
        self._reduced, self._window = reduced, window
        self._normalization, self._randomize = xray_normalization, randomize
        for acquisition in acquisitions:
            _check_room(ranges, acquisition, acquisition.spacing * size)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch of "volume", X-rays, "index", "seed" and perhaps "labels" -> the same keys, and "camera".

        A sample is fixed by its seed. camera: of the X-rays as they are now, without the poses.
        """
        seeds, volume = batch["seed"].tolist(), batch["volume"]
        cases = [self.acquisitions[i] for i in batch["index"].tolist()]
        draws = [self.ranges.draw(seed, tuple(case.poses)) for seed, case in zip(seeds, cases, strict=True)]
        taken = [case.moved(draw) for case, draw in zip(cases, draws, strict=True)]
        size = volume.shape[-1]

        # Deform the cubes, and the labels with them.
        places = sources(draws, [how.spacing * size / 2 for how in taken], volume)
        volume = F.grid_sample(volume, places, padding_mode="border", align_corners=False).clamp(-1, 1)
        result = {**batch, "volume": volume}
        if "labels" in batch:
            labels = batch["labels"][:, None].float()
            nearest = F.grid_sample(labels, places, "nearest", padding_mode="border", align_corners=False)
            result["labels"] = nearest[:, 0].to(batch["labels"].dtype)

        # Take the X-rays of what they have become, in exposures of their own.
        hu = denormalize_hu(volume[:, 0], self._window).round()
        pairs = [how.render(cube, self._reduced) for how, cube in zip(taken, hu, strict=True)]
        if self._randomize:
            shown = [{view: image.cpu() for view, image in pair.items()} for pair in pairs]
            pairs = [self._randomize.expose(pair, seed) for pair, seed in zip(shown, seeds, strict=True)]
        for view in taken[0].poses:
            images = torch.stack([pair[view] for pair in pairs]).to(volume.device)
            result[view] = normalize_xray(images, self._normalization)[:, None]
        result["camera"] = torch.tensor([how.camera.panel_map(how.spacing * size) for how in taken])
        return result


def sources(draws: Sequence[Deformation], halves: Sequence[float], volume: Volume) -> Float[Tensor, "b d h w 3"]:
    """Places in the given cubes that the deformed ones' voxels come from, as ``grid_sample`` has it: faces at +-1.

    halves: half the cubes' sides, mm. volume: for its shape, type and device.
    """
    matrix, shift, knots = (
        torch.from_numpy(np.stack(values)).to(volume)
        for values in (
            [draw.matrix for draw in draws],
            [draw.shift / half for draw, half in zip(draws, halves, strict=True)],
            [draw.knots * 2 / (draw.knots.shape[-1] - 3) for draw in draws],  # to halves of a side
        )
    )
    size = volume.shape[-1]
    centre = (torch.arange(size, dtype=volume.dtype, device=volume.device) * 2 + 1) / size - 1
    z, y, x = torch.meshgrid(centre, centre, centre, indexing="ij")
    basis = bspline(size, knots.shape[-1], volume)
    displaced = torch.einsum("bcklm,zk,yl,xm->bczyx", knots, basis, basis, basis)
    moved = torch.stack((x, y, z)) + displaced
    # Sums and no matrix product, which may round more coarsely on a GPU.
    turned = sum(matrix[:, :, j, None, None, None] * moved[:, None, j] for j in range(3))
    return (turned + shift[:, :, None, None, None]).movedim(1, -1)


def bspline(size: int, knots: int, like: Tensor) -> Float[Tensor, "size knots"]:
    """Weights of a uniform cubic B-spline at ``size`` voxel centres of a side with knots - 3 cells; rows sum to 1."""
    at = (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) * ((knots - 3) / size) + 1
    t = (at[:, None] - torch.arange(knots, dtype=like.dtype, device=like.device)).abs()
    return torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t).clamp(min=0) ** 3 / 6)


def _coarser(camera: Camera, most: int) -> Camera:
    """The same panel with at most so many pixels per side."""
    rows, cols = min(camera.rows, most), min(camera.cols, most)
    pitch = (camera.pitch[0] * camera.rows / rows, camera.pitch[1] * camera.cols / cols)
    return replace(camera, rows=rows, cols=cols, pitch=pitch)


def _check_room(ranges: Augmentation, how: Acquisition, side: float) -> None:
    """UserError where a draw could bring a cube of ``side`` mm to the source or the panel."""
    camera, share = how.camera, ranges.camera
    if camera.kind == "parallel":
        return
    angle = max(sum(map(abs, pose.rotation_deg)) for pose in how.poses.values()) + 3 * ranges.pose_degrees
    shift = max(max(map(abs, pose.shift_mm)) for pose in how.poses.values()) + ranges.pose_mm
    # A cube that is turned by an angle reaches so far along an axis; then it is turned to the view.
    reach = side / 2 * (1 + math.sqrt(2) * math.sin(math.radians(min(angle, 90)))) + shift
    turns = [math.radians(view_angle(view)) for view in how.poses]
    reach *= max(abs(math.cos(turn)) + abs(math.sin(turn)) for turn in turns)
    room = min(camera.sad * (1 - share), camera.sid * (1 - share) - camera.sad * (1 + share))
    if reach >= room:
        raise UserError(
            f"dataset.augment: a cube of {side:g} mm would reach {reach:.0f} mm far, and the source or panel may stand "
            f"at {room:.0f} mm; lower dataset.augment.camera, pose_degrees or pose_mm"
        )
