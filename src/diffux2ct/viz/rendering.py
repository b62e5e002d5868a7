"""Volume rendering as in the paper's figures: bone in ivory, implants in red, seen from the front and from the side.

pyvista (the extra ``viz``) draws the isosurfaces off screen. It runs in a process of its own, because a missing or
broken OpenGL may end its process, and an evaluation must not end with it.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8

from diffux2ct.viz.slices import BONE_HU

METAL_HU = 1450.0
"""Metal starts here in pictures: a window that ends at 1500 HU, as the paper's, leaves it at 1500, and bone seldom
comes near (of a real chest at 2.5 mm 29 voxels do, where 1100 HU would paint 1400)."""

RENDER_VIEWS = ("front", "side")
BONE_COLOUR, METAL_COLOUR = (240, 230, 205), (214, 30, 36)

MARGIN = 1.02
"""A picture's side over the longest side of the volume."""

_BACKGROUND = (13, 17, 23)
_SEE_THROUGH = 0.75  # how strongly metal inside bone shines through
_OVERSAMPLING = 2
_TIMEOUT = 300  # seconds; drawing in software takes about two


class RenderingUnavailable(Exception):
    """Nothing can be rendered on this machine; the message is one line: the cause and, where known, the remedy."""


def render_case(
    truth: Num[np.ndarray, "d h w"],
    reconstruction: Num[np.ndarray, "d h w"],
    spacing: Sequence[float],
    *,
    size: int = 320,
) -> dict[str, dict[str, UInt8[np.ndarray, "size size 3"]]]:
    """Pictures {"truth" | "reconstruction": {"front" | "side": picture}} of a case, by one camera.

    Volumes in HU; spacing (x, y, z) in mm; size: pixels per side.
    Raises RenderingUnavailable where pyvista is not installed or this machine cannot draw.
    """
    if find_spec("pyvista") is None:
        raise RenderingUnavailable("pyvista is not installed; install the extra: pip install 'diffux2ct[viz]'")
    with tempfile.TemporaryDirectory(prefix="diffux2ct-rendering-") as folder:
        source, target = Path(folder) / "volumes.npz", Path(folder) / "pictures.npz"
        np.savez(source, truth=truth, reconstruction=reconstruction, spacing=np.asarray(spacing), size=size)
        command = [sys.executable, "-m", "diffux2ct.viz.rendering", str(source), str(target)]
        try:
            done = subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", timeout=_TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            raise RenderingUnavailable(f"pyvista drew nothing in {_TIMEOUT} seconds") from None
        if done.returncode or not target.is_file():
            raise RenderingUnavailable(f"pyvista could not draw here: {_reason(done)}")
        with np.load(target) as pictures:
            return {
                name: {view: pictures[f"{name}_{view}"] for view in RENDER_VIEWS}
                for name in ("truth", "reconstruction")
            }


def _render_volume(hu: np.ndarray, spacing: Sequence[float], size: int) -> dict[str, np.ndarray]:
    """The isosurfaces of one volume from the front and from the patient's left, in this process.

    Metal that bone hides shines through, so that the whole screw is visible.
    """
    from PIL import Image

    pictures = {}
    with _scene(_surfaces(hu, spacing), size * _OVERSAMPLING) as (plotter, actors):
        for view in RENDER_VIEWS:
            _look(plotter, hu.shape, spacing, view)
            picture = _shot(plotter)
            if "bone" in actors and "metal" in actors:
                actors["bone"].SetVisibility(False)
                metal = _shot(plotter)
                actors["bone"].SetVisibility(True)
                there = (np.abs(metal.astype(np.int16) - _BACKGROUND) > 2).any(axis=-1, keepdims=True)
                blend = _SEE_THROUGH * metal.astype(np.float32) + (1 - _SEE_THROUGH) * picture
                picture = np.where(there, np.round(blend), picture).astype(np.uint8)
            pictures[view] = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS))
    return pictures


def _surfaces(hu: np.ndarray, spacing: Sequence[float]) -> dict[str, Any]:
    """Meshes in mm of the tissues that have a voxel above their threshold.

    A border of air closes surfaces that the volume's edge would cut open.
    """
    import pyvista

    padded = np.pad(np.asarray(hu, np.float32), 1, constant_values=-1024.0)
    grid = pyvista.ImageData(
        dimensions=padded.shape[::-1], spacing=tuple(spacing), origin=tuple(-step for step in spacing)
    )
    grid["hu"] = padded.ravel()  # x runs fastest, as VTK wants it
    return {
        name: grid.contour([threshold], scalars="hu", method="flying_edges")
        for name, threshold in (("bone", BONE_HU), ("metal", METAL_HU))
        if hu.max() > threshold
    }


@contextmanager
def _scene(surfaces: Mapping[str, Any], size: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A plotter off screen with the surfaces in it, and its actors by name."""
    import pyvista

    plotter: Any = pyvista.Plotter(off_screen=True, window_size=[size, size], lighting="light kit")
    try:
        # The picture is drawn larger and reduced; the driver's own smoothing would triple the time in software.
        plotter.render_window.SetMultiSamples(0)
        plotter.set_background([channel / 255 for channel in _BACKGROUND])
        shading = {"smooth_shading": True, "ambient": 0.2, "diffuse": 0.85, "specular": 0.2, "specular_power": 20}
        colours = {"bone": BONE_COLOUR, "metal": METAL_COLOUR}
        actors = {name: plotter.add_mesh(mesh, color=colours[name], **shading) for name, mesh in surfaces.items()}
        yield plotter, actors
    finally:
        plotter.close()


def _look(plotter: Any, shape: tuple[int, ...], spacing: Sequence[float], view: str) -> None:
    """Aim a parallel camera at the middle of the volume, which fills the picture."""
    size, step = np.array(shape[::-1]), np.asarray(spacing, float)
    centre, reach = (size - 1) * step / 2, float((size * step).max())  # voxel centres lie at 0, 1, 2 steps ...
    # From the front the patient's left is on the right of the picture; from their left, anterior is on its left.
    away = {"front": (0.0, -1.0, 0.0), "side": (1.0, 0.0, 0.0)}[view]
    camera = plotter.camera
    camera.position = tuple(centre + 3 * reach * np.array(away))
    camera.focal_point = tuple(centre)
    camera.up = (0.0, 0.0, 1.0)
    camera.parallel_projection = True
    camera.parallel_scale = reach / 2 * MARGIN
    camera.clipping_range = (reach, 5 * reach)


def _shot(plotter: Any) -> np.ndarray:
    plotter.render()
    return np.asarray(plotter.screenshot(return_img=True))[..., :3]


def _reason(done: subprocess.CompletedProcess) -> str:
    if done.returncode < 0:
        return f"its process was ended by signal {-done.returncode}; OpenGL is missing or broken"
    lines = [line.strip() for line in (done.stderr or "").splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"exit code {done.returncode}"


def main(source: str, target: str) -> None:
    """Render the volumes that `render_case` wrote to ``source``, in a process of its own."""
    with np.load(source) as given:
        spacing, size = given["spacing"].tolist(), int(given["size"])
        pictures: dict[str, Any] = {
            f"{name}_{view}": picture
            for name in ("truth", "reconstruction")
            for view, picture in _render_volume(given[name], spacing, size).items()
        }
    np.savez(target, **pictures)


if __name__ == "__main__":
    main(*sys.argv[1:])
