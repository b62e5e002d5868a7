"""The ray-support mask: voxels that at least one ray of a view reaches on its way to the panel.

Nothing was measured of the others, so that the spread of samples there is what the model has learned of bodies.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool

from diffux2ct.data.prepared.writer import read_case
from diffux2ct.errors import UserError
from diffux2ct.types import VIEWS
from diffux2ct.xray.camera import Camera
from diffux2ct.xray.joseph import project_joseph
from diffux2ct.xray.pose import Pose, in_named_view

_Spacing = tuple[float, float, float]


def ray_support(
    camera: Camera,
    shape: tuple[int, int, int],
    spacing: _Spacing,
    poses: Mapping[str, Pose] | None = None,
    views: Sequence[str] = VIEWS,
) -> Bool[np.ndarray, "d h w"]:
    """True where a voxel changes a pixel of any view: where the projection has a gradient.

    shape: (D, H, W). spacing: (x, y, z) mm. poses: the patient's, by view; None: straight. UserError for a volume that
    reaches the source or the panel.
    """
    placed = tuple(in_named_view(view, (poses or {}).get(view)) for view in views)
    return _support(camera, shape, spacing, placed)


@lru_cache(maxsize=2)
def _support(
    camera: Camera, shape: tuple[int, ...], spacing: _Spacing, placed: tuple[tuple[str, Pose | None], ...]
) -> np.ndarray:
    with torch.inference_mode(False), torch.enable_grad():
        volume = torch.zeros(1, 1, *shape, requires_grad=True)
        for view, pose in placed:
            project_joseph(volume, spacing, camera, view, pose=pose).sum().backward()
    assert volume.grad is not None
    mask = (volume.grad[0, 0] > 0).numpy()
    mask.setflags(write=False)  # the cache shares it
    return mask


def case_support(path: Path | None, size: int, views: Sequence[str] = VIEWS) -> Bool[np.ndarray, "d h w"] | None:
    """The mask of a prepared case at ``size`` voxels a side; None where its camera is unknown."""
    record = None if path is None else read_case(path.parent.parent, path.name)
    if record is None:
        return None
    with suppress(UserError, KeyError, TypeError):  # older files describe a part of it
        step = float(record["spacing"][0]) * int(record["size"]) / size
        poses = {view: Pose.from_dict(pose) for view, pose in (record.get("poses") or {}).items()}
        camera = Camera.from_dict(record["camera_geometry"])
        return ray_support(camera, (size, size, size), (step, step, step), poses, views)
    return None
