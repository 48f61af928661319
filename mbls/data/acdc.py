"""Read the ACDC layout: patients, volumes, splits and 2-D slices; the phantom is written in it and read by the same code.

``ROOT/[training/]patientXXX/{Info.cfg, patientXXX_frameNN.nii.gz, patientXXX_frameNN_gt.nii.gz[, patientXXX_frameNN_prob.npz]}``

Labels: 0 background, 1 right-ventricle cavity (RV), 2 myocardium (MYO), 3 left-ventricle cavity (LV).
Data set: Bernard et al., IEEE TMI 37(11), 2018, doi 10.1109/TMI.2018.2837502, CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

__all__ = [
    "CLASS_NAMES",
    "GROUPS",
    "NUM_CLASSES",
    "PHASES",
    "Patient",
    "SliceDataset",
    "Split",
    "Volume",
    "augmentation",
    "check_patients",
    "find_patients",
    "fingerprint",
    "read_split",
    "read_volume",
    "split_patients",
]

CLASS_NAMES = ("background", "RV", "MYO", "LV")
NUM_CLASSES = len(CLASS_NAMES)
PHASES = ("ED", "ES")
#: Normal, dilated and hypertrophic cardiomyopathy, infarction with low ejection fraction, abnormal right ventricle.
GROUPS = ("NOR", "DCM", "HCM", "MINF", "RV")


@dataclass(frozen=True)
class Patient:
    """One patient's folder and what its Info.cfg says; height in cm and weight in kg where they are given."""

    folder: Path
    ed_frame: int
    es_frame: int
    group: str | None = None
    height: float | None = None
    weight: float | None = None
    num_frames: int | None = None

    @property
    def id(self) -> str:
        return self.folder.name

    def path(self, phase: str, kind: str = "image") -> Path:
        """File of a phase, "ED" or "ES"; kind "image", "labels" or "probs"."""
        if phase not in PHASES:
            raise ValueError(f"phase: got {phase!r}, expected one of {', '.join(PHASES)}")
        frame = self.ed_frame if phase == "ED" else self.es_frame
        ending = {"image": ".nii.gz", "labels": "_gt.nii.gz", "probs": "_prob.npz"}[kind]
        return self.folder / f"{self.id}_frame{frame:02d}{ending}"


class Volume(NamedTuple):
    """One phase of one patient, on the grid of the file, axes (x, y, z)."""

    image: np.ndarray  # (x, y, z) float32, intensities as stored
    labels: np.ndarray  # (x, y, z) uint8, 0..3
    spacing: tuple[float, float, float] | None  # mm, None where the file does not know it
    probs: np.ndarray | None  # (4, x, y, z) uint8, true label probabilities in 1/255 (phantom only)


class Split(NamedTuple):
    """Patients of the three sets; no patient is in two."""

    train: list[Patient]
    val: list[Patient]
    test: list[Patient]


def find_patients(root: str | Path) -> list[Patient]:
    """All patients under a root (or its ``training`` folder), by name.

    Raises:
        FileNotFoundError: no such folder, no patient in it, or a patient without Info.cfg.
        ValueError: an Info.cfg without frame numbers for ED and ES.
    """
    return [_read_info(folder) for folder in _patient_folders(root)]


def _patient_folders(root: str | Path) -> list[Path]:
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"root: got {root}, expected an existing folder in the ACDC layout")
    for base in (root / "training", root):
        if base.is_dir():
            folders = sorted(
                path for path in base.iterdir() if path.is_dir() and re.fullmatch(r"patient\d+", path.name)
            )
            if folders:
                return folders
    raise FileNotFoundError(f"root: got {root}, expected folders patientXXX in it or in its folder training")


def _read_info(folder: Path) -> Patient:
    path = folder / "Info.cfg"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing, expected the patient's ED and ES frame numbers in it")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = dict((part.strip() for part in line.split(":", 1)) for line in lines if ":" in line)

    def number(key: str, kind: type, required: bool = False) -> Any:
        if key not in entries:
            if required:
                raise ValueError(
                    f"{path}: got no entry {key!r} (entries: {', '.join(entries) or 'none'}), expected '{key}: frame number'"
                )
            return None
        try:
            return kind(entries[key])
        except ValueError:
            raise ValueError(f"{path}: got {key}: {entries[key]!r}, expected a number") from None

    return Patient(
        folder=folder,
        ed_frame=number("ED", int, required=True),
        es_frame=number("ES", int, required=True),
        group=entries.get("Group"),
        height=number("Height", float),
        weight=number("Weight", float),
        num_frames=number("NbFrame", int),
    )


def read_volume(patient: Patient, phase: str) -> Volume:
    """Image, labels and, where they are known, spacing and true label probabilities of one phase.

    Spacing counts as unknown where the header names no unit and all voxel sizes are 1.

    Raises:
        FileNotFoundError: image or labels missing.
        ValueError: a file that cannot be read to its end; an image that is not 3-D and finite; labels of another shape or
            outside 0..3; probabilities of another shape or that do not sum to 1.
    """
    image_path, labels_path, probs_path = (patient.path(phase, kind) for kind in ("image", "labels", "probs"))
    image, header = _read_nifti(image_path)
    if image.ndim != 3:
        raise ValueError(f"{image_path}: got shape {image.shape}, expected 3 dimensions (x, y, z)")
    image = image.astype(np.float32)
    if not np.isfinite(image).all():
        raise ValueError(
            f"{image_path}: got {np.count_nonzero(~np.isfinite(image))} NaN or infinite intensities, expected none"
        )
    labels, _ = _read_nifti(labels_path)
    if labels.shape != image.shape:
        raise ValueError(f"{labels_path}: got shape {labels.shape}, expected {image.shape} as in {image_path.name}")
    wrong = ~np.isin(labels, range(NUM_CLASSES))
    if wrong.any():
        raise ValueError(
            f"{labels_path}: got label {labels[wrong][0]:g} ({np.count_nonzero(wrong)} voxels), expected 0..{NUM_CLASSES - 1}"
        )
    zooms = tuple(float(size) for size in header.get_zooms()[:3])
    unknown = header.get_xyzt_units()[0] == "unknown" and zooms == (1.0, 1.0, 1.0)
    return Volume(image, labels.astype(np.uint8), None if unknown else zooms, _read_probs(probs_path, image.shape))


def _read_nifti(path: Path) -> tuple[np.ndarray, nib.Nifti1Header]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing, expected a NIfTI volume named by the frame number in Info.cfg")
    try:
        volume = nib.load(path)
        return np.asarray(volume.dataobj), volume.header
    except (EOFError, OSError, zlib.error, nib.filebasedimages.ImageFileError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read as gzipped NIfTI ({error}), expected a complete file; fetch or make it again"
        ) from error


def _read_probs(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file) as archive:
            probs = archive["probs"]
    except (OSError, EOFError, KeyError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}), expected an npz with the array 'probs'; make the phantom again"
        ) from error
    if (
        probs.shape != (NUM_CLASSES, *shape)
        or probs.dtype != np.uint8
        or not (probs.sum(0, dtype=np.int64) == 255).all()
    ):
        raise ValueError(
            f"{path}: got shape {probs.shape} of {probs.dtype}, expected uint8 {(NUM_CLASSES, *shape)} summing to 255"
        )
    return probs


def check_patients(root: str | Path) -> dict[str, list[str]]:
    """Read everything under a root and say per patient what is wrong: patient id -> problems (empty when clean).

    Raises:
        FileNotFoundError: no such folder, or no patient in it.
    """
    report: dict[str, list[str]] = {}
    for folder in tqdm(_patient_folders(root), desc="check", unit="patient", leave=False, delay=2):
        problems = report.setdefault(folder.name, [])
        try:
            patient = _read_info(folder)
        except (FileNotFoundError, ValueError) as error:
            problems.append(str(error))
            continue
        for phase in PHASES:
            try:
                volume = read_volume(patient, phase)
            except (FileNotFoundError, ValueError) as error:
                problems.append(str(error))
                continue
            absent = [CLASS_NAMES[label] for label in range(1, NUM_CLASSES) if not (volume.labels == label).any()]
            if absent:
                problems.append(
                    f"{patient.path(phase, 'labels')}: got no voxel of {', '.join(absent)}, expected every structure"
                )
            if volume.image.max() == volume.image.min():
                problems.append(f"{patient.path(phase)}: got a constant image, expected anatomy")
    return report


def fingerprint(patients: Iterable[Patient]) -> str:
    """SHA-256 over the unpacked files of the patients, first 16 hex digits: names the data that a result came from."""
    digest = hashlib.sha256()
    for patient in sorted(patients, key=lambda patient: patient.id):
        for phase in PHASES:
            for kind in ("image", "labels"):
                digest.update(f"{patient.id} {phase} {kind}".encode())
                digest.update(gzip.decompress(patient.path(phase, kind).read_bytes()))
    return digest.hexdigest()[:16]


def split_patients(
    patients: Sequence[Patient], train: int | float, val: int | float, test: int | float, seed: int = 0
) -> Split:
    """Split by patient, each group spread over the sets in proportion.

    Patients are ordered inside their group by a hash of (seed, id), and the groups interleaved; so the split is the same on every
    machine and version.

    Args:
        train, val, test: numbers of patients (int) or fractions of all (float, rounded down; fractions may leave patients out).

    Raises:
        ValueError: a patient listed twice; sizes below 0 or of more patients than there are; an empty training set.
    """
    ids = [patient.id for patient in patients]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise ValueError(f"patients: got {', '.join(twice)} more than once, expected each patient once")
    sizes = [int(size * len(ids) + 1e-9) if isinstance(size, float) else size for size in (train, val, test)]
    if min(sizes) < 0 or sum(sizes) > len(ids) or sizes[0] == 0:
        raise ValueError(
            f"train, val, test: got {train}, {val}, {test} ({sum(sizes)} patients), "
            f"expected sizes >= 0 with train > 0 that take at most the {len(ids)} patients found"
        )
    rank: list[tuple[float, str, Patient]] = []
    for group in sorted({patient.group or "" for patient in patients}):
        members = [patient for patient in patients if (patient.group or "") == group]
        members.sort(key=lambda patient: hashlib.sha256(f"{seed}:{patient.id}".encode()).digest())
        rank += [((place + 0.5) / len(members), group, patient) for place, patient in enumerate(members)]
    ordered = [patient for _, _, patient in sorted(rank, key=lambda entry: entry[:2])]
    first, second, third = sizes[0], sizes[0] + sizes[1], sum(sizes)
    return Split(ordered[:first], ordered[first:second], ordered[second:third])


def read_split(path: str | Path, patients: Sequence[Patient]) -> Split:
    """A split that is fixed in a file: JSON with the ids of "train", "val" and "test", each in the order to be used.

    Args:
        path: e.g. ``data/acdc_split.json``, whose training patients are ordered so that the first n are balanced by group.
        patients: from :func:`find_patients`; those that the file does not name are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not such a JSON; a patient named twice; one that is not among ``patients``; no training patient.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"split: got {path}, expected a JSON file with the patients of train, val and test")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        named = [[str(name) for name in content[part]] for part in Split._fields]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: cannot be read as a split ({error!r}), expected lists "train", "val" and "test"'
        ) from error
    ids = [name for part in named for name in part]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: got {', '.join(twice)} more than once, expected each patient once")
    found = {patient.id: patient for patient in patients}
    absent = [name for name in ids if name not in found]
    if absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise ValueError(f"{path}: got patients that the data does not have ({', '.join(absent[:5])}{more})")
    if not named[0]:
        raise ValueError(f"{path}: got no training patient, expected at least one")
    return Split(*([found[name] for name in part] for part in named))


class VolumeSlices(NamedTuple):
    """Where a volume's slices lie in a SliceDataset: ``[start:stop]``, apex or base first as in the file."""

    patient: str
    group: str | None
    phase: str
    start: int
    stop: int
    spacing: tuple[float, float, float] | None  # (slice, row, column) in mm, after resizing


class SliceDataset(Dataset):
    """All short-axis slices of some patients, prepared once and held in memory.

    Args:
        patients: from :func:`find_patients` or a :class:`Split`.
        size: side of the square slice given to the network, in voxels.
        crop: side of the centred square taken from the image (zero-padded where the image is smaller), in voxels; resized
            to ``size`` where it differs. Default: ``size``, no resizing.
        scaling: "zscore" (mean 0, deviation 1 over the volume), "percentile" (1st..99th to 0..1, clipped) or "none".
        spacing: resample in plane to this many mm a voxel first; needs files that know their spacing.
        phases: which of "ED", "ES".
        transform: called on {"image": (1, H, W), "label": (1, H, W)} at each access, e.g. :func:`augmentation`.

    Items: image (1, size, size) float32, label (size, size) int64.

    Attributes:
        images: (N, 1, size, size) float32. labels: (N, size, size) uint8. probs: (N, 4, size, size) float32, or None without them.
        volumes: a :class:`VolumeSlices` for each volume.

    Raises:
        ValueError: no patient; options out of range; spacing asked of a file that does not know it.
        FileNotFoundError, ValueError: as :func:`read_volume`.

    Source: the protocol of arXiv 2209.09641's official code is ``size=192, crop=192``.
    """

    def __init__(
        self,
        patients: Sequence[Patient],
        size: int = 192,
        crop: int | None = None,
        scaling: str = "zscore",
        spacing: float | None = None,
        phases: Sequence[str] = PHASES,
        transform: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None,
    ) -> None:
        crop = size if crop is None else crop
        if not patients:
            raise ValueError("patients: got none, expected at least one")
        if size < 1 or crop < 1:
            raise ValueError(f"size, crop: got {size}, {crop}, expected at least 1 voxel")
        if scaling not in ("zscore", "percentile", "none"):
            raise ValueError(f'scaling: got {scaling!r}, expected "zscore", "percentile" or "none"')
        if spacing is not None and not spacing > 0:
            raise ValueError(f"spacing: got {spacing}, expected millimetres > 0")
        self.transform = transform
        self.volumes: list[VolumeSlices] = []
        images, labels, probs = [], [], []
        for patient in tqdm(patients, desc="read", unit="patient", leave=False, delay=10):
            for phase in phases:
                volume = read_volume(patient, phase)
                grid = _Grid(volume, size, crop, spacing, patient.path(phase))
                start = self.volumes[-1].stop if self.volumes else 0
                stop = start + volume.image.shape[2]
                self.volumes.append(VolumeSlices(patient.id, patient.group, phase, start, stop, grid.spacing))
                images.append(grid.image(_scaled(volume.image, scaling)))
                labels.append(grid.labels(volume.labels))
                probs.append(None if volume.probs is None else grid.probs(volume.probs))
        self.images = torch.cat(images).unsqueeze(1)
        self.labels = torch.cat(labels)
        self.probs = None if any(part is None for part in probs) else torch.cat(probs)

    def __len__(self) -> int:
        return len(self.images)

    def first_patients(self, number: int) -> SliceDataset:
        """The slices of the first so many patients; views of this set's memory."""
        kept = list(dict.fromkeys(volume.patient for volume in self.volumes))[:number]
        part = copy.copy(self)
        part.volumes = [volume for volume in self.volumes if volume.patient in kept]
        stop = part.volumes[-1].stop
        part.images, part.labels = self.images[:stop], self.labels[:stop]
        part.probs = None if self.probs is None else self.probs[:stop]
        return part

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = self.images[index], self.labels[index]
        if self.transform is not None:
            item = self.transform({"image": image, "label": label.unsqueeze(0)})
            image, label = torch.as_tensor(item["image"]), torch.as_tensor(item["label"]).squeeze(0)
        return image, label.long()


def _scaled(image: np.ndarray, scaling: str) -> np.ndarray:
    from monai.transforms import NormalizeIntensity, ScaleIntensityRangePercentiles

    if scaling == "zscore":
        image = NormalizeIntensity()(image)
    elif scaling == "percentile":
        image = ScaleIntensityRangePercentiles(lower=1, upper=99, b_min=0, b_max=1, clip=True)(image)
    return np.asarray(image)


class _Grid:
    """The way from a file's grid to the network's; slices travel in the channel dimension of MONAI's 2-D transforms."""

    def __init__(self, volume: Volume, size: int, crop: int, spacing: float | None, path: Path) -> None:
        from monai.transforms import ResizeWithPadOrCrop

        self.resampled: tuple[int, int] | None = None
        in_plane = None if volume.spacing is None else volume.spacing[:2]
        if spacing is not None:
            if in_plane is None:
                raise ValueError(f"{path}: the file does not know its voxel size, expected spacing=None")
            self.resampled = tuple(
                max(1, round(n * have / spacing)) for n, have in zip(volume.image.shape[:2], in_plane, strict=True)
            )
            in_plane = (spacing, spacing)
        self.resized = None if size == crop else (size, size)
        self.crop = ResizeWithPadOrCrop(spatial_size=(crop, crop))
        scale = crop / size
        self.spacing = None if in_plane is None else (volume.spacing[2], in_plane[0] * scale, in_plane[1] * scale)

    def _through(self, slices: np.ndarray, mode: str) -> torch.Tensor:
        from monai.transforms import Resize

        tensor = torch.as_tensor(np.ascontiguousarray(slices, dtype=np.float32))
        for step in (self.resampled, self.crop, self.resized):
            if step is self.crop:
                tensor = self.crop(tensor)
            elif step is not None:
                shrinks = step[0] < tensor.shape[1] and mode == "bilinear"
                tensor = Resize(step, mode=mode, anti_aliasing=shrinks)(tensor)
        return torch.as_tensor(tensor).as_subclass(torch.Tensor)

    def image(self, image: np.ndarray) -> torch.Tensor:
        return self._through(image.transpose(2, 0, 1), "bilinear")

    def labels(self, labels: np.ndarray) -> torch.Tensor:
        return self._through(labels.transpose(2, 0, 1), "nearest-exact").to(torch.uint8)

    def probs(self, probs: np.ndarray) -> torch.Tensor:
        structures = [self._through(part.transpose(2, 0, 1) / 255.0, "bilinear").clamp(min=0) for part in probs[1:]]
        stacked = torch.stack(structures, dim=1)
        # The padding is background; so the background takes what the structures leave.
        return torch.cat([(1 - stacked.sum(1, keepdim=True)).clamp(min=0), stacked], dim=1)


def augmentation(probability: float = 0.5) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Mild augmentation for short-axis slices, by MONAI: rotation, scaling and shift, contrast, noise.

    Args:
        probability: of each of the transforms, 0..1.

    Returns:
        A MONAI Compose on {"image", "label"}; ``set_random_state(seed)`` makes it repeatable, which
        :func:`mbls.engine.fit.fit` does.
    """
    from monai.transforms import Compose, RandAdjustContrastd, RandAffined, RandGaussianNoised

    if not 0 <= probability <= 1:
        raise ValueError(f"probability: got {probability}, expected 0..1")
    return Compose(
        [
            RandAffined(
                keys=("image", "label"),
                prob=probability,
                rotate_range=0.3,
                scale_range=(0.1, 0.1),
                translate_range=(5, 5),
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            RandAdjustContrastd(keys="image", prob=probability, gamma=(0.8, 1.25)),
            RandGaussianNoised(keys="image", prob=probability, std=0.05),
        ]
    )
