"""How well screws and rods are found in answers that are nearly the truth.

    python benchmarks/implants.py                    # writes benchmarks/implants.csv

Lumbar phantoms at 128^3 and 2 mm, clipped at 1500 HU, of a seed that chose no threshold. Each instrumented one is
answered by itself, by itself searched with another seed, with 5 HU and 50 HU of noise, and blurred a little (Gaussian,
in voxels). A row an answer: how many labelled screws and rods the truth itself shows, and means over all of them.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from _common import HERE, skip, write_csv
from diffux2ct.data.labels import structure_values
from diffux2ct.data.phantom import make_phantom
from diffux2ct.evaluation.anatomy.implants import ImplantScores, implant_scores, true_implants

Answer = Callable[[np.ndarray, np.random.Generator], np.ndarray]

SPACING = (2.0, 2.0, 2.0)
ANSWERS: dict[str, Answer] = {
    "the truth": lambda hu, draw: hu,
    "the truth, another seed": lambda hu, draw: hu,
    "noise, 5 HU": lambda hu, draw: hu + draw.normal(0, 5, hu.shape),
    "noise, 50 HU": lambda hu, draw: hu + draw.normal(0, 50, hu.shape),
    "blurred, sigma 0.6": lambda hu, draw: ndimage.gaussian_filter(hu.astype(np.float32), 0.6),
    "blurred, sigma 1": lambda hu, draw: ndimage.gaussian_filter(hu.astype(np.float32), 1.0),
}


def scores_of(hu: np.ndarray, labels: np.ndarray, number: int) -> tuple[int, int, dict[str, ImplantScores]]:
    """Labelled implants, those of them that the truth shows, and the scores of each answer."""
    truth = true_implants(hu, labels, SPACING)
    seen = len(truth.screws) + len(truth.rods)
    scores = {}
    for answer, spoil in ANSWERS.items():
        spoilt = np.clip(np.round(spoil(hu, np.random.default_rng(number))), -1024, 1500).astype(np.int16)
        scores[answer] = implant_scores(spoilt, truth, SPACING, seed=int("seed" in answer))
    return seen + truth.unseen, seen, scores


def mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.3f}" if known else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=60, help="about two of three are instrumented")
    parser.add_argument("--seed", type=int, default=4242)
    parser.add_argument("--out", type=Path, default=HERE / "implants.csv")
    args = parser.parse_args()
    metal = np.array(list(structure_values("implants")))
    cases = []
    for number in tqdm(range(args.phantoms), unit="phantom"):
        phantom = make_phantom(args.seed, number, size=128, extent_mm=256.0)
        if np.isin(phantom.labels, metal).any():
            cases.append(scores_of(np.clip(phantom.hu, -1024, 1500), phantom.labels, number))
    if not cases:
        skip("none of the phantoms is instrumented")
    rows = []
    for answer in ANSWERS:
        scores = [each[answer] for _, _, each in cases]
        tips, angles = [[x for s in scores for x in getattr(s, name)] for name in ("tips", "angles")]
        rows.append(
            {
                "answer": answer,
                "phantoms": len(cases),
                "labelled": sum(labelled for labelled, _, _ in cases),
                "shown": sum(seen for _, seen, _ in cases),
                "recall": mean([s.recall for s in scores]),
                "precision": mean([s.precision for s in scores]),
                "tip_mm": mean(list(tips)),
                "tip_mm_largest": f"{max(tips, default=0.0):.3f}",
                "axis_deg": mean(list(angles)),
                "rod_mm": mean([s.rod_mm for s in scores]),
                "seed": args.seed,
            }
        )
        print(rows[-1])
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
