"""All that a report needs of one case: small, and kept in a file of its own, so that a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mbls.engine.judge import Judgement, columns, judge
from mbls.engine.predict import Prediction
from mbls.engine.structures import distance_shells, volumes
from mbls.files import atomic_write, read_npz
from mbls.metrics import CalibrationBins

__all__ = ["IGNORED_PIXEL", "JudgedCase", "judge_case"]

#: In pictures, a label that does not count.
IGNORED_PIXEL = 255
#: Voxels that a picture shows around the structures.
_MARGIN = 8


@dataclass(frozen=True)
class JudgedCase:
    """One case, judged.

    Attributes:
        identity: what it was made from; with another identity it is made again.
        judgement: of this case alone.
        structures: :func:`mbls.engine.structures.volumes`, with case and subject.
        shells: :func:`mbls.engine.structures.distance_shells`.
        picture: (3, H, W) uint8, of the slice where the network is most sure of what is wrong, cut to the structures:
            labels, winner, and the winner's probability times 255.
        picture_slice: number of that slice, from 0.
        aspect: height of a pixel of the picture divided by its width.
    """

    identity: str
    judgement: Judgement
    structures: list[dict[str, Any]]
    shells: np.ndarray
    picture: np.ndarray
    picture_slice: int
    aspect: float

    @property
    def row(self) -> dict[str, Any]:
        """The case's row of metrics."""
        return self.judgement.cases[0]

    def save(self, path: Path) -> None:
        """Write it as one .npz file."""
        told = {
            "identity": self.identity,
            "class_names": self.judgement.class_names,
            "row": self.row,
            "structures": self.structures,
            "picture_slice": self.picture_slice,
            "aspect": self.aspect,
        }
        arrays: dict[str, Any] = {"shells": self.shells, "picture": self.picture}
        for key, (bins,) in self.judgement.case_bins.items():
            arrays[f"bins {key}"] = torch.stack([*bins.state_dict().values()]).numpy()
        for region, counts in self.judgement.distances.items():
            arrays[f"distances {region}"] = counts
        with atomic_write(path) as part, part.open("wb") as file:
            np.savez_compressed(file, told=np.array(json.dumps(told)), **arrays)

    @classmethod
    def load(cls, path: Path) -> JudgedCase:
        """What :meth:`save` wrote, to the bit.

        Raises:
            OSError: no such file.
            ValueError: a file that cannot be read.
        """
        arrays = read_npz(path)
        try:
            told = json.loads(str(arrays["told"]))
            names = tuple(told["class_names"])
            case_bins, distances = {}, {}
            for name, array in arrays.items():
                part, _, key = name.partition(" ")
                if part == "bins":
                    case_bins[key] = [_bins(array)]
                elif part == "distances":
                    distances[key] = array
            judgement = Judgement(names, [told["row"]], case_bins, distances)
            rest = (arrays["shells"], arrays["picture"], told["picture_slice"], told["aspect"])
            return cls(told["identity"], judgement, told["structures"], *rest)
        except Exception as error:  # each kind of damage has its own
            raise ValueError(f"{path}: cannot be read ({error!r}), expected a judged case; delete it") from error


def _bins(table: np.ndarray) -> CalibrationBins:
    """From counts and sums, (3, K + 1, bins)."""
    bins = CalibrationBins(table.shape[1] - 1, table.shape[2])
    bins.load_state_dict(dict(zip(bins.state_dict(), map(torch.from_numpy, table), strict=True)))
    return bins


def judge_case(
    prediction: Prediction,
    class_names: tuple[str, ...],
    identity: str = "",
    scale: Callable[[torch.Tensor], torch.Tensor] | None = None,
    surface: bool = True,
) -> JudgedCase:
    """Judge one prediction by :func:`mbls.engine.judge.judge`, with volumes, shells and a picture.

    Args:
        prediction: of the case.
        class_names: K names, index 0 the background.
        identity: what it was made from.
        scale: as for :func:`mbls.engine.judge.judge`.
        surface: False leaves out HD95, ASD and the shells.

    Raises:
        ValueError: as :func:`mbls.engine.judge.judge`; a case without a voxel that counts.
    """
    if not (prediction.labels >= 0).any():
        raise ValueError(f"{prediction.id}: got no voxel whose label counts, expected at least one")
    judgement = judge([prediction], class_names, columns(surface), scale)
    structures = volumes(prediction, class_names)
    expected = np.array([one["expected_dsc"] for one in structures])
    known = expected[~np.isnan(expected)]
    mean = float(known.mean()) if known.size else float("nan")
    judgement.cases[0] |= {"expected_dsc": mean, "floored": prediction.floored}
    who = {"case": prediction.id, "subject": prediction.subject}
    shells = distance_shells(prediction if surface else replace(prediction, spacing=None))
    return JudgedCase(identity, judgement, [who | one for one in structures], shells, *_picture(prediction))


def _picture(prediction: Prediction) -> tuple[np.ndarray, int, float]:
    labels = prediction.labels.reshape(-1, *prediction.labels.shape[-2:])
    confidence, winner = (part.reshape(labels.shape) for part in (prediction.confidence, prediction.winner))
    wrong = (winner != labels) & (labels >= 0)
    worst = int((confidence.double() * wrong).flatten(1).sum(1).argmax())
    shown = torch.stack(
        [
            labels[worst].clamp(max=IGNORED_PIXEL - 1).where(labels[worst] >= 0, IGNORED_PIXEL),
            winner[worst],
            (confidence[worst] * 255).round().long(),
        ]
    )
    places = ((labels[worst] > 0) | (winner[worst] > 0)).nonzero()
    if len(places):
        low = (places.amin(0) - _MARGIN).clamp(min=0).tolist()
        high = (places.amax(0) + _MARGIN + 1).tolist()
        shown = shown[:, low[0] : high[0], low[1] : high[1]]
    height, width = prediction.spacing[-2:] if prediction.spacing else (1.0, 1.0)
    return shown.to(torch.uint8).numpy(), worst, height / width
