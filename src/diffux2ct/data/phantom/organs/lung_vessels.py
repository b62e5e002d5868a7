"""Pulmonary vessels: binary trees that grow from each hilum until they are thinner than a voxel."""

from collections.abc import Mapping

import numpy as np

from diffux2ct.data.phantom.canvas import Box
from diffux2ct.data.phantom.organs.trunk import Body
from diffux2ct.data.phantom.shapes import capsule

STEMS = 14  # from one hilum
GENERATIONS = 6
SHRINK = 0.76  # of the radius at a fork, near Murray's law for equal branches


def grow_tree(rng: np.random.Generator, hilum: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Segments [N, 2, 3] and radii [N] of one lung's vessels."""
    turn = (np.arange(STEMS) + rng.uniform(0, 0.5)) / STEMS * 2 * np.pi
    spread = rng.uniform(0.55, 1.25, STEMS)
    across, up = 0.85 * np.sin(spread) * np.cos(turn) + 0.12, 1.15 * np.sin(spread) * np.sin(turn) - 0.1
    way = np.stack([side * np.cos(spread), across, up], 1)
    at = np.repeat(hilum[None], STEMS, 0) + rng.normal(0, 5, (STEMS, 3))
    radius = rng.uniform(2.2, 4.4, STEMS)
    segments, radii = [], []
    for generation in range(GENERATIONS):
        way = way / np.linalg.norm(way, axis=1, keepdims=True)
        length = rng.uniform(15, 27, len(at)) * 0.93**generation
        end = at + way * length[:, None]
        segments.append(np.stack([at, end], 1))
        radii.append(radius)
        at, radius = np.repeat(end, 2, 0), np.repeat(radius, 2) * SHRINK * rng.uniform(0.85, 1.1, 2 * len(at))
        bend = rng.normal(0, 0.42, (len(way), 3))
        # The two branches bend to opposite sides; all tend outwards.
        way = np.repeat(way, 2, 0) + np.stack([bend, -bend], 1).reshape(-1, 3) + (side * 0.06, 0.02, 0)
    return np.concatenate(segments), np.concatenate(radii)


def paint_lung_vessels(
    body: Body, box: Box, lungs: np.ndarray, hila: Mapping[int, np.ndarray], rng: np.random.Generator
) -> None:
    """Paint both trees, cut off at the pleura. lungs: distance to the pleura over `box`."""
    canvas = body.canvas
    cover = np.zeros(box.shape, np.float32)
    for side in (-1, 1):
        segments, radii = grow_tree(rng, hila[side], side)
        # A vessel thinner than this is painted this thick and fainter in proportion.
        thick = np.maximum(radii, 0.5 * canvas.voxel)
        margin = (thick + canvas.voxel)[:, None]
        low, high = segments.min(1) - margin, segments.max(1) + margin
        for i in np.flatnonzero(radii > 0.25 * canvas.voxel):
            part = canvas.box(low[i].tolist(), high[i].tolist(), box)
            if part.empty:
                continue
            start, end = segments[i].tolist()
            faint = canvas.coverage(capsule(part.x, part.y, part.z, start, end, float(thick[i])))
            faint *= np.float32((radii[i] / thick[i]) ** 2)
            view = cover[part.within(box)]
            np.maximum(view, faint, out=view)
    cover *= canvas.coverage(lungs + 1.5)
    canvas.blend(box, cover, 190 if body.anatomy.is_["contrast"] else 40)
