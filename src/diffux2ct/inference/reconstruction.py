"""A CT that was made of X-rays: what `reconstruct` returns, and the files of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int16
from torch import Tensor

from diffux2ct.data.io.volume import write_nifti
from diffux2ct.errors import UserError
from diffux2ct.files.atomic import replaced_files, write_text
from diffux2ct.viz import slices

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = (".nii.gz", ".nii", ".mha", ".nrrd")
UNCERTAINTY = ("std_hu", "interval_low", "interval_high", "ray_support")


@dataclass(frozen=True, repr=False)
class Reconstruction:
    """A CT that a model made of X-rays.

    hu: int16 HU, [D, H, W] = (z toward superior, y toward posterior, x toward left). spacing: (x, y, z) mm.
    origin: (x, y, z) mm LPS of the first voxel. xrays: the images as the model saw them, [1, 1, rows, cols] in
    [-1, 1], row 0 most inferior. record: what ``reconstruct.json`` holds: checkpoint, inputs, seed, sampler, notes.
    uncertainty: on the CT's grid, where asked for: "std_hu" of several draws; "interval_low" and "interval_high" (HU)
    of a calibrated model; "ray_support", 1 where rays of a view reach, where the camera is known.
    """

    hu: Int16[np.ndarray, "d h w"]
    spacing: list[float]
    origin: list[float]
    xrays: dict[str, Tensor]
    record: dict[str, Any]
    uncertainty: dict[str, np.ndarray] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Reconstruction(shape={self.hu.shape}, spacing={self.spacing}, origin={self.origin})"

    @property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        """Voxel (x, y, z) to mm in RAS, NIfTI's convention: ``nibabel.Nifti1Image(ct.hu.T, ct.affine)``."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = self.origin
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

    def save(self, path: str | Path) -> None:
        """Write the CT as .nii.gz, .nii, .mha or .nrrd; the file appears whole. UserError where that cannot be."""
        path = Path(path)
        if not path.name.lower().endswith(FORMATS):
            raise UserError(f"{path}: of an unknown format; end it in {', '.join(FORMATS)}")
        try:
            write_nifti(path, self.hu, self.spacing, self.origin)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file or folder") from error

    def show(self) -> "Image":
        """One picture of the X-rays and of three planes through the bone; a notebook displays it."""
        from PIL.Image import fromarray

        planes = slices.orthoslices(self.hu, slices.bone_centre(self.hu))
        tiles = {plane: slices.grey(image, slices.WINDOWS["bone"]) for plane, image in planes.items()}
        return fromarray(slices.strip(_xray_tiles(self.xrays) | tiles))

    def _repr_png_(self) -> bytes:
        return slices.png_bytes(np.asarray(self.show()))

    def write_folder(self, out: Path) -> None:
        """Write reconstruction.nii.gz, xrays_used.png and reconstruct.json into the folder ``out``.

        Each appears whole, and the record, which vouches for the others, last.
        """
        if out.exists() and not out.is_dir():
            raise UserError(f"{out}: is a file; out= is a folder")
        with replaced_files(out, record="reconstruct.json") as partial:
            self.save(partial / "reconstruction.nii.gz")
            for name, volume in self.uncertainty.items():
                write_nifti(partial / f"{name}.nii.gz", volume, self.spacing, self.origin)
            slices.save_png(partial / "xrays_used.png", slices.strip(_xray_tiles(self.xrays)))
            write_text(partial / "reconstruct.json", json.dumps(self.record, indent=2) + "\n")
        for name in set(UNCERTAINTY) - set(self.uncertainty):  # of a former reconstruction
            (out / f"{name}.nii.gz").unlink(missing_ok=True)


def _xray_tiles(xrays: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {view: slices.grey(slices.display_xray(xrays[view][0, 0].numpy()), (-1.0, 1.0)) for view in xrays}
