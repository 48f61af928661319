"""What a prediction says of each structure's volume, and how sure it is at each distance from the true boundary."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from mbls.data.slices import IGNORED
from mbls.engine.predict import Prediction

__all__ = ["SHELLS", "boundary_distance", "distance_shells", "expected_dsc", "volumes"]

#: Edges of the signed distances in mm: below zero in structures, above in the background.
SHELLS = (-math.inf, -16.0, -8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, math.inf)


def volumes(prediction: Prediction, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The true and the predicted volume of each structure, in voxels, and the DSC that the network itself expects.

    Args:
        prediction: of a case; voxels that do not count are left out.
        class_names: K names, index 0 the background.

    Returns:
        A row a structure: class, true (voxels of the label), predicted (where it wins), expected (the sum of its
        probabilities), sd (the root of the sum of p (1 - p), as if voxels were independent), expected_dsc
        (:func:`expected_dsc`), and voxel_ml (one voxel in ml, NaN where the spacing is not known).

    Example:
        >>> logits = torch.tensor([[[0.0, 0.0]], [[0.0, 9.0]]])
        >>> (row,) = volumes(Prediction("a", "a", logits, torch.tensor([[0, 1]])), ("background", "heart"))
        >>> row["true"], row["predicted"], round(row["expected"], 2)
        (1, 1, 1.5)
    """
    counts = prediction.labels != IGNORED
    with torch.inference_mode():
        probs, winner, labels = prediction.logits.softmax(0), prediction.winner, prediction.labels
        if not counts.all():
            probs, winner, labels = probs[:, counts], winner[counts], labels[counts]
        voxel_ml = math.nan if prediction.spacing is None else math.prod(prediction.spacing) / 1000
        rows = []
        for label, name in enumerate(class_names[1:], 1):
            p, won = probs[label], winner == label
            rows.append(
                {
                    "class": name,
                    "true": int((labels == label).sum()),
                    "predicted": int(won.sum()),
                    "expected": float(p.sum(dtype=torch.float64)),
                    "sd": float((p * (1 - p)).sum(dtype=torch.float64).sqrt()),
                    "expected_dsc": expected_dsc(p, won),
                    "voxel_ml": voxel_ml,
                }
            )
    return rows


def expected_dsc(probs: torch.Tensor, won: torch.Tensor) -> float:
    """The DSC that a structure's probabilities promise: 2 sum(p yhat) / (sum p + sum yhat); NaN where it wins nowhere.

    Args:
        probs: the structure's probability, of any shape.
        won: where it wins, like probs.

    Example:
        >>> expected_dsc(torch.tensor([0.5, 0.5]), torch.tensor([True, True]))
        0.6666666666666666
    """
    if not won.any():
        return math.nan
    return float(2 * probs[won].sum(dtype=torch.float64) / (probs.sum(dtype=torch.float64) + won.sum()))


def boundary_distance(labels: np.ndarray, spacing: tuple[float, ...], reach: float = 16.0) -> np.ndarray:
    """Distance in mm from each voxel's centre to the nearest change of the label.

    The change lies at the face of the nearest voxel that has another label. Ignored voxels have NaN, and make no
    boundary; infinite where there is no other label, and outside the box that holds all structures and ``reach``.

    Args:
        labels: (*spatial) whole numbers, 0 the background, negative where ignored.
        spacing: mm along each axis.
        reach: in mm; distances up to it are wanted.

    Example:
        >>> boundary_distance(np.array([[0, 0, 1, 1]]), (1.0, 2.0))
        array([[3., 1., 1., 3.]])
    """
    found = np.full(labels.shape, np.inf)
    found[labels < 0] = np.nan
    places = np.nonzero(labels > 0)
    if not places[0].size:
        return found
    box = tuple(
        slice(max(int(along.min() - reach / step) - 1, 0), int(along.max() + reach / step) + 3)
        for along, step in zip(places, spacing, strict=True)
    )
    near = labels[box]
    present = [label for label in np.unique(near) if label >= 0]
    for label in present if len(present) > 1 else []:
        inside = near == label
        # Zero marks what is looked for: the voxels of another label.
        nearest: Any = distance_transform_edt(
            inside | (near < 0), sampling=spacing, return_distances=False, return_indices=True
        )
        steps = np.abs(nearest[:, inside] - np.stack(np.nonzero(inside))) - 0.5
        across = np.maximum(steps, 0) * np.reshape(spacing, (-1, 1))
        found[box][inside] = np.sqrt((across**2).sum(0))
    return found


def distance_shells(prediction: Prediction) -> np.ndarray:
    """Voxels, summed confidence and hits of the winning class in each of the :data:`SHELLS` around the true boundary.

    A shell is known only to whoever knows the label, so even a network that knows each voxel's chances is too sure in
    some shells and not sure enough in others: the shells show where errors lie, not whether claims are kept.

    Returns:
        (shells, 3) float64; all zero without spacing.
    """
    counts = np.zeros((len(SHELLS) - 1, 3))
    if prediction.spacing is None:
        return counts
    labels = prediction.labels.cpu().numpy()
    signed = boundary_distance(labels, prediction.spacing) * np.where(labels > 0, -1, 1)
    known = ~np.isnan(signed)
    shell = np.searchsorted(SHELLS[1:-1], signed[known], side="right")
    confidence, winner = (part.cpu().numpy()[known] for part in (prediction.confidence, prediction.winner))
    for column, values in enumerate(
        (None, confidence.astype(np.float64), (winner == labels[known]).astype(np.float64))
    ):
        counts[:, column] = np.bincount(shell, values, len(counts))
    return counts
