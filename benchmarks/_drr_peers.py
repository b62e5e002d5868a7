"""Other DRR programs under our camera: nanodrr, diffdrr and plastimatch, as functions that render a view.

Each takes linear attenuation (plastimatch: HU) [D, H, W] LPS, the spacing of its cubic voxels in mm and a cone camera,
and gives (the tensor that its gradient is for, or None; render(view) -> line integrals [rows, cols] in our axes).
"""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import Camera

Renderer = tuple[torch.Tensor | None, Callable[[str], torch.Tensor]]

# Camera axes in LPS: along the columns, along the rows, along the beam.
FRAMES = {
    "frontal": ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)),
    "lateral": ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)),
}


def camera_to_world(view: str, camera: Camera, rows_up: bool) -> torch.Tensor:
    """[1, 4, 4]. A peer whose first row is the largest coordinate gets the row axis reversed."""
    column, row, beam = (torch.tensor(axis) for axis in FRAMES[view])
    beam = camera.toward * beam
    matrix = torch.eye(4)
    matrix[:3, 0], matrix[:3, 1], matrix[:3, 2] = column, -row if rows_up else row, beam
    matrix[:3, 3] = -camera.sad * beam
    return matrix[None]


def torchio_image(attenuation: torch.Tensor, spacing: float):
    """A torchio image whose world is ours: LPS mm around the centre."""
    from torchio import ScalarImage

    data = attenuation.permute(2, 1, 0)[None].contiguous()  # torchio stores [C, W, H, D]
    affine = torch.diag(torch.tensor([spacing, spacing, spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = -(torch.tensor(data.shape[1:]) - 1) / 2 * spacing
    return ScalarImage(tensor=data, affine=affine.numpy())


def nanodrr(attenuation: torch.Tensor, spacing: float, camera: Camera, n_samples: int = 500) -> Renderer:
    """nanodrr's only method: ``n_samples`` interpolated samples a ray."""
    from nanodrr.data import Subject
    from nanodrr.drr import DRR

    subject = Subject.from_images(torchio_image(attenuation, spacing), convert_to_mu=False)
    drr = DRR.from_carm_intrinsics(
        camera.sid, camera.pitch[1], camera.pitch[0], 0.0, 0.0, camera.rows, camera.cols, dtype=torch.float32
    ).to(attenuation.device)
    subject = subject.to(attenuation.device)
    poses = {view: camera_to_world(view, camera, rows_up=False).to(attenuation.device) for view in VIEWS}
    return subject.image, lambda view: drr(subject, poses[view], n_samples=n_samples)[0, 0]


def diffdrr(attenuation: torch.Tensor, spacing: float, camera: Camera, renderer: str = "siddon") -> Renderer:
    """diffdrr with its "siddon" or its "trilinear" renderer (500 samples a ray)."""
    from diffdrr.drr import DRR
    from diffdrr.pose import RigidTransform
    from torchio import Subject

    image = torchio_image(attenuation, spacing)
    subject = Subject(volume=image, density=image, mask=None, reorient=torch.eye(4), orientation=None)
    pitch = {"delx": camera.pitch[1], "dely": camera.pitch[0]}
    drr = DRR(subject, camera.sid, camera.rows, width=camera.cols, reverse_x_axis=False, renderer=renderer, **pitch).to(
        attenuation.device
    )
    poses = {view: RigidTransform(camera_to_world(view, camera, rows_up=True).to(attenuation.device)) for view in VIEWS}
    return drr.density, lambda view: drr(poses[view])[0, 0]


def plastimatch_program() -> str | None:
    """The executable: of the PyPI wheel (without running Python's start of it), or on the PATH; None if neither."""
    package = importlib.util.find_spec("plastimatch")
    if package is not None and package.origin is not None:
        inside = Path(package.origin).parent / "bin" / "plastimatch"
        if inside.is_file():
            return str(inside)
    return shutil.which("plastimatch")


class Plastimatch:
    """``plastimatch drr`` on one CT, as X2CT-GAN called it.

    Its conventions, found with version 1.10: ``--nrm`` points from the isocentre to the source. ``-r`` and ``-z`` are
    rows, then columns. The first row is the top. With ``--vup "0 0 1"`` columns run to the patient's left for a source
    in front, and to the front for a source at the right; a reversed camera turns both around. Values are line
    integrals of 0.022 (1 + HU / 1000) per mm, 0 at HU <= -800, divided by 10 (``-s 10`` undoes that). A ray begins and
    ends at the outermost voxels' centres, half a voxel inside the volume: ``margin`` voxels of air around it make
    plastimatch see all of it.

    Args:
        hu: [D, H, W], float32 or int16. folder: where its files go. margin: voxels of air on every side.
    """

    def __init__(self, hu: np.ndarray, spacing: float, camera: Camera, folder: Path, margin: int = 1) -> None:
        import SimpleITK as sitk

        program = plastimatch_program()
        if program is None:
            raise ImportError("no plastimatch program")
        self.program, self.camera, self.folder = program, camera, Path(folder)
        self.seconds = float("nan")  # of the last rendering, as the program reports it: without start and reading
        volume = np.pad(np.asarray(hu, dtype=np.float32), margin, constant_values=-1000.0)
        image = sitk.GetImageFromArray(volume)
        image.SetSpacing([float(spacing)] * 3)
        image.SetOrigin([-(n - 1) / 2 * float(spacing) for n in volume.shape[::-1]])
        sitk.WriteImage(image, str(self.folder / "ct.mha"))

    def __call__(self, view: str) -> torch.Tensor:
        """Line integrals [rows, cols] in our axes."""
        camera, beam = self.camera, FRAMES[view][2]
        command = [self.program, "drr", "-i", "exact", "-t", "pfm", "-s", "10", "-o", "0 0 0", "--vup", "0 0 1"]
        command += ["--nrm", " ".join(f"{-camera.toward * axis:g}" for axis in beam)]
        command += ["--sad", f"{camera.sad:.9g}", "--sid", f"{camera.sid:.9g}", "-r", f"{camera.rows} {camera.cols}"]
        command += ["-z", f"{camera.rows * camera.pitch[0]:.9g} {camera.cols * camera.pitch[1]:.9g}"]
        done = subprocess.run(
            [*command, "-O", "drr_", "ct.mha"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        )
        told = re.search(r"Total time: ([\d.e+-]+) sec", done.stdout)
        self.seconds = float(told[1]) if told else float("nan")
        image = read_pfm(self.folder / "drr_0000.pfm")[::-1]
        image = image[:, ::-1] if (view == "lateral") != camera.reverse else image
        return torch.from_numpy(image.copy())


def read_pfm(path: Path) -> np.ndarray:
    """A little-endian grey PFM file as plastimatch writes it, [rows, cols] in the file's order."""
    with path.open("rb") as file:
        if file.readline().strip() != b"Pf":
            raise ValueError(f"{path}: not a grey PFM file")
        cols, rows = (int(number) for number in file.readline().split())
        scale = float(file.readline())
        values = np.frombuffer(file.read(), dtype="<f4" if scale < 0 else ">f4")
    return values.reshape(rows, cols).astype(np.float32)
