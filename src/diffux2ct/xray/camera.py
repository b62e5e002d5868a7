"""An X-ray view of a volume: source, panel, pixels, and the projection of points onto the panel.

Coordinates are LPS millimetres relative to the isocentre, which is the centre of the volume: x to the
patient's Left, y to Posterior, z to Superior. Both views share one camera. The frontal source stands in front
of the patient (y = -SAD) and its rays run toward +y; the lateral source stands at the patient's right
(x = -SAD) and its rays run toward +x; a reversed camera has both on the other side. Panel rows follow +z; panel
columns follow +x (frontal) or +y (lateral). Nothing is flipped, so pixel (row, column) looks at voxel (z, x) or (z, y).
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch

from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS

Real = float | int
Array = TypeVar("Array", torch.Tensor, np.ndarray)


@dataclass(frozen=True)
class Camera:
    """A cone-beam, slit-scanning or parallel-beam camera.

    A slit camera is a CT scanner's localizer (scout, topogram): source and detector row stand still while the
    patient moves along z. Its rays fan out across and stay perpendicular to z: SAD and SID magnify columns only.

    Args:
        kind: "cone", "slit" or "parallel".
        sad: source to isocentre, mm; 0 for a parallel beam, which has no source.
        sid: source to panel, mm; 0 for a parallel beam.
        rows, cols: pixels of the panel.
        pitch: mm between pixel centres (along rows' axis z, along columns' axis), on the panel. A slit camera's
            rows are as far apart as the table moves between two of them.
        name: of the preset, if any.
        reverse: the sources stand behind the patient and at the left (postero-anterior, as X2CT-GAN's), and the
            parts there appear larger. Rows and columns stay as they are.

    UserError for a camera that cannot exist.
    """

    kind: str
    sad: Real
    sid: Real
    rows: int
    cols: int
    pitch: tuple[Real, Real]
    name: str = ""
    reverse: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("cone", "slit", "parallel"):
            raise UserError(f"camera kind {self.kind!r} is unknown; use cone, slit or parallel")
        panel = (self.rows, self.cols, *self.pitch) if isinstance(self.pitch, Sequence) else ()
        whole = all(isinstance(pixels, numbers.Integral) for pixels in panel[:2])
        if len(panel) != 4 or not finite(*panel) or not min(panel) > 0 or not whole:
            raise UserError(f"camera panel {self.rows}x{self.cols} with pitch {self.pitch} mm; all must be positive")
        if not isinstance(self.reverse, bool):
            raise UserError(f"camera reverse={self.reverse}; give true or false")
        if not finite(self.sad, self.sid) or (self.kind != "parallel" and not 0 < self.sad <= self.sid):
            raise UserError(f"{self.kind} camera with sad={self.sad}, sid={self.sid} mm; it needs 0 < sad <= sid")

    @property
    def toward(self) -> int:
        """1 where rays run toward +y and +x, -1 where the camera is reversed."""
        return -1 if self.reverse else 1

    def magnification(self, depth: Any) -> Any:
        """Panel mm per mm across, at ``depth`` (mm from the isocentre along +y or +x): SID / (SAD +- depth).

        depth: a number, tensor or array; the result is of its kind.
        """
        if self.kind == "parallel":
            return depth * 0.0 + 1.0
        return self.sid / (self.sad + self.toward * depth)

    def row_magnification(self, depth: Any) -> Any:
        """Panel mm per mm along z: as ``magnification`` for a cone, 1 for a slit or parallel beam."""
        return self.magnification(depth) if self.kind == "cone" else depth * 0.0 + 1.0

    def voxel_to_pixel(self, points_mm: Array, view: str) -> Array:
        """Points [..., 3] (x, y, z), mm from the volume's centre, on the panel: [..., 2] fractional (row, column).

        The first pixel's centre is (0, 0); points may fall outside the panel. view: "frontal" or "lateral".
        """
        x, y, z = points_mm[..., 0], points_mm[..., 1], points_mm[..., 2]
        across, depth = (x, y) if checked_view(view) == "frontal" else (y, x)
        row = z * self.row_magnification(depth) / self.pitch[0] + (self.rows - 1) / 2
        col = across * self.magnification(depth) / self.pitch[1] + (self.cols - 1) / 2
        stack: Any = torch.stack if isinstance(points_mm, torch.Tensor) else np.stack
        return stack((row, col), -1)

    def panel_map(self, side_mm: Real) -> tuple[float, float, float, float]:
        """Row scale, row slope, column scale and column slope of a cube of ``side_mm`` about the isocentre.

        In fractions of half the cube's side, a point at (across, depth, z) appears at row z * scale / (1 + slope *
        depth) and column across * scale / (1 + slope * depth), in fractions of half the panel; in both views.
        """
        half = side_mm / 2
        slope = 0.0 if self.kind == "parallel" else self.toward * half / self.sad
        row = half * self.row_magnification(0.0) / (self.rows * self.pitch[0] / 2)
        col = half * self.magnification(0.0) / (self.cols * self.pitch[1] / 2)
        return row, slope if self.kind == "cone" else 0.0, col, slope

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "pitch": list(self.pitch)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Camera":
        """The inverse of ``to_dict``; UserError for anything but its keys."""
        known = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping):
            raise UserError(f"camera description {values!r}; it needs {', '.join(sorted(known))}")
        unknown, missing = set(values) - known, known - {"name", "reverse"} - set(values)
        if unknown or missing:
            raise UserError(
                f"camera description: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}; "
                f"it needs {', '.join(sorted(known))}"
            )
        pitch = values["pitch"]
        return cls(**{**values, "pitch": tuple(pitch) if isinstance(pitch, list) else pitch})


def camera_preset(name: str, size: int | Sequence[int], spacing: Real | Sequence[Real]) -> Camera:
    """A named camera for a volume.

    - ``lumbar``: C-arm, SAD 1000, SID 1500 mm. The pixel is one voxel magnified to the panel, so at the
      isocentre plane pixel and voxel indices agree: the central part of a 440 mm panel for 128 voxels of 2 mm.
    - ``x2ct``: SAD 541, SID 949 mm, 320 x 320 pixels on a 500 mm panel, whatever the volume: X2CT-GAN's LIDC.
      Its sources stand behind the patient and at the left (its options of plastimatch, run and compared).
    - ``parallel``: parallel rays, one pixel a voxel: the control that mis-registers nothing.

    size: voxels per side, or (D, H, W) with H = W. spacing: mm per voxel, or (x, y, z) with x = y: one camera serves
    both views. UserError for an unknown name, and for a volume whose x and y differ.
    """
    rows, height, cols = (size, size, size) if isinstance(size, int) else size
    sx, sy, sz = spacing_xyz(spacing)
    if name == "x2ct":
        return Camera("cone", 541.0, 949.0, 320, 320, (500.0 / 320, 500.0 / 320), name, reverse=True)
    if name not in ("lumbar", "parallel"):
        raise UserError(f"camera {name!r} is unknown; use lumbar, x2ct or parallel")
    if height != cols or abs(sx - sy) > 1e-6 * sx:
        raise UserError(
            f"camera {name!r} serves both views and needs equal x and y, got {cols}x{height} voxels "
            f"of {sx:g}x{sy:g} mm; resample to a square grid"
        )
    if name == "parallel":
        return Camera("parallel", 0.0, 0.0, rows, cols, (float(sz), float(sx)), name)
    return Camera("cone", 1000.0, 1500.0, rows, cols, (sz * 1.5, sx * 1.5), name)


def spacing_xyz(spacing: Real | Sequence[Real]) -> tuple[float, float, float]:
    """Spacing as three numbers (x, y, z) in mm, from one number or three; UserError unless all are positive."""
    values = np.atleast_1d(spacing).ravel().tolist()
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3 or not finite(*values) or not min(values) > 0:
        raise UserError(f"spacing={spacing} mm; give one positive number, or three (x, y, z)")
    return float(values[0]), float(values[1]), float(values[2])


def finite(*values: Any) -> bool:
    """True if all values are numbers and finite; a boolean is no number here."""
    return all(isinstance(v, numbers.Real) and not isinstance(v, bool) and math.isfinite(v) for v in values)


def checked_view(view: str) -> str:
    """The view itself, or ValueError."""
    if view not in VIEWS:
        raise ValueError(f"view {view!r} is unknown; use {' or '.join(VIEWS)}")
    return view
