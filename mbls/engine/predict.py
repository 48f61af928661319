"""Predictions, the seam between networks and their judgement: made by a network, kept on disk, read again; one at a
time."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import is_wrapped
from torch import nn

from mbls.data.slices import SliceDataset, VolumeSlices
from mbls.engine.devices import forward_flops, make_fabric, set_memory_format, threads_for
from mbls.files import atomic_write, check_file_name, read_json, read_npz, write_json
from mbls.posthoc import TemperatureScaling

__all__ = [
    "INDEX",
    "KeptPredictions",
    "Prediction",
    "PredictionFolder",
    "fit_temperature",
    "keep",
    "predict",
    "read_kept",
    "write_index",
]

#: In a folder of kept predictions: what they are of.
INDEX = "predictions.json"


@dataclass(frozen=True)
class Prediction:
    """What a network says about a case, and the labels.

    Attributes:
        id: of the case.
        subject: the person it shows.
        logits: (K, *spatial) float32; or log-probabilities, which differ from them by a constant at each voxel, and so
            have the same softmax and the same distances.
        labels: (*spatial) int64, 0..K-1, or -100 where a voxel does not count; on the device of the logits.
        spacing: mm along each spatial axis, None where it is not known.
        group: as :class:`mbls.data.dataset.Case`.
        floored: probabilities that were too small for a logarithm, and were raised.
    """

    id: str
    subject: str
    logits: torch.Tensor
    labels: torch.Tensor
    spacing: tuple[float, ...] | None = None
    group: str | None = None
    floored: int = 0

    @functools.cached_property
    def winner(self) -> torch.Tensor:
        """The class with the largest logit, the first of several equal ones, (*spatial) int64."""
        # A comparison a class: torch's argmax over the first dimension takes ten times as long on a CPU.
        best, winner = self.logits[0].detach(), torch.zeros_like(self.labels)
        for label, logits in enumerate(self.logits[1:].detach(), 1):
            winner.masked_fill_(logits > best, label)
            best = torch.maximum(best, logits)
        return winner

    @functools.cached_property
    def confidence(self) -> torch.Tensor:
        """The probability of the class that wins, (*spatial) float32."""
        return self.logits.detach().softmax(0).amax(0)


def predict(
    network: nn.Module,
    data: SliceDataset,
    fabric: Fabric | None = None,
    volumes: Sequence[VolumeSlices] | None = None,
) -> Iterator[Prediction]:
    """A network's predictions, a case at a time, on its device; the network is left in eval mode.

    Args:
        network: (B, C, *spatial) float -> logits (B, K, *spatial).
        data: the cases.
        fabric: :func:`mbls.engine.devices.make_fabric` when None.
        volumes: only these of ``data.volumes``.

    Yields:
        Slices are stacked along the first spatial axis: logits (K, slices, H, W).
    """
    fabric = fabric or make_fabric()
    set_memory_format(network, fabric)
    precision = fabric.strategy.precision
    # Never as DistributedDataParallel, which waits in each pass for all processes: they may have unequally many cases.
    inner: Any = network.module if is_wrapped(network) else fabric.to_device(precision.convert_module(network))
    inner.eval()
    # Counted only where there are threads to choose from: a validation inside fit runs on those that fit has chosen.
    choosing = fabric.device.type == "cpu" and torch.get_num_threads() > 1
    flops = forward_flops(inner, (1, *data.images.shape[1:])) if choosing else 0
    for volume in data.volumes if volumes is None else volumes:
        images = data.images[volume.start : volume.stop]
        with torch.inference_mode(), precision.forward_context(), threads_for(len(images) * flops, fabric.device):
            logits = inner(precision.convert_input(fabric.to_device(images))).float()
        labels = fabric.to_device(data.labels[volume.start : volume.stop]).long()
        yield Prediction(
            volume.id, volume.subject, logits.movedim(1, 0).contiguous(), labels, volume.spacing, volume.group
        )


def fit_temperature(predictions: Iterable[Prediction]) -> TemperatureScaling:
    """Temperature scaling fitted on all voxels of some cases that count, normally the validation set's."""
    logits, labels = [], []
    for prediction in predictions:
        counts = prediction.labels >= 0
        logits.append(prediction.logits[:, counts].T)
        labels.append(prediction.labels[counts])
    return TemperatureScaling().fit(torch.cat(logits), torch.cat(labels))


def keep(predictions: Iterable[Prediction], folder: str | Path) -> Iterator[Prediction]:
    """Write predictions into a folder as they pass: log-probabilities in float16, compressed, a file a case.

    Log-probabilities, since probabilities round to 0 and 1 where the logits lie far apart. The class that wins stays
    the one that wins. :func:`write_index` makes the folder complete.

    Args:
        predictions: what passes, and is yielded unchanged.
        folder: made where it is missing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for prediction in predictions:
        log_probs = _rounded(prediction.logits.log_softmax(0).cpu().numpy())
        with atomic_write(folder / f"{prediction.id}.npz") as part, part.open("wb") as file:
            np.savez_compressed(
                file,
                log_probs=log_probs,
                labels=prediction.labels.cpu().numpy().astype(np.int16),
                subject=np.array(prediction.subject),
                group=np.array(prediction.group or ""),
                spacing=np.array(prediction.spacing or (), dtype=np.float64),
            )
        yield prediction


def write_index(folder: str | Path, name: str, class_names: Sequence[str], cases: Sequence[str]) -> None:
    """Say what the predictions of a folder are of: the data, the K classes, and the cases in their order."""
    write_json({"data": name, "class_names": list(class_names), "cases": list(cases)}, Path(folder) / INDEX)


def _rounded(log_probs: np.ndarray) -> np.ndarray:
    """In float16, and the winner, which may tie after rounding, a step above the others."""
    rounded = log_probs.astype(np.float16)
    winner = np.expand_dims(log_probs.argmax(0), 0)
    moved = np.expand_dims(rounded.argmax(0), 0) != winner
    top = np.take_along_axis(rounded, winner, 0)
    np.put_along_axis(rounded, winner, np.where(moved, np.nextafter(top, np.float16(np.inf)), top), 0)
    return rounded


class PredictionFolder(ABC):
    """Predictions on disk; iterating reads them, one at a time, as often as you like.

    Attributes:
        name: of the data.
        class_names: K names.
        cases: the ids, in order.
        unmatched: what was found and has no partner, as text.
    """

    def __init__(
        self, name: str, class_names: Sequence[str], cases: Sequence[str], unmatched: Sequence[str] = ()
    ) -> None:
        self.name, self.class_names, self.cases = name, tuple(class_names), tuple(cases)
        self.unmatched = tuple(unmatched)

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Prediction]:
        return map(self.read, self.cases)

    @abstractmethod
    def read(self, case: str) -> Prediction:
        """The prediction of a case.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file that is not what was expected.
        """

    @abstractmethod
    def files(self, case: str) -> tuple[Path, ...]:
        """The files that a case is read from."""


class KeptPredictions(PredictionFolder):
    """What :func:`keep` and :func:`write_index` wrote into a folder; see :func:`read_kept`."""

    def __init__(self, folder: Path, name: str, class_names: Sequence[str], cases: Sequence[str]) -> None:
        super().__init__(name, class_names, cases)
        self.folder = folder

    def files(self, case: str) -> tuple[Path, ...]:
        return (self.folder / f"{case}.npz",)

    def read(self, case: str) -> Prediction:
        (path,) = self.files(case)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing, expected the prediction that {INDEX} names")
        parts = read_npz(path, ["log_probs", "labels", "subject", "group", "spacing"])
        logits, labels = parts["log_probs"], parts["labels"]
        expected = (len(self.class_names), *labels.shape)
        if logits.shape != expected or logits.dtype != np.float16:
            raise ValueError(f"{path}: got log_probs {logits.shape} of {logits.dtype}, expected float16 {expected}")
        return Prediction(
            case,
            str(parts["subject"]),
            torch.from_numpy(logits.astype(np.float32)),
            torch.from_numpy(labels.astype(np.int64)),
            tuple(parts["spacing"].tolist()) or None,
            str(parts["group"]) or None,
        )


def read_kept(folder: str | Path) -> KeptPredictions:
    """The predictions that :func:`keep` and :func:`write_index` wrote into a folder.

    Raises:
        FileNotFoundError: no kept predictions there.
        ValueError: an index that cannot be read; when iterating, a file that is damaged.
    """
    index = Path(folder) / INDEX
    if not index.is_file():
        raise FileNotFoundError(f"{index}: missing, expected a folder of kept predictions")
    content = read_json(index)
    try:
        names, cases = tuple(map(str, content["class_names"])), tuple(map(str, content["cases"]))
        title = str(content["data"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{index}: cannot be read ({error!r}), expected data, class_names and cases") from error
    for case in cases:
        check_file_name(index, case)
    return KeptPredictions(index.parent, title, names, cases)
