"""Read the ACDC layout; the phantom is written in it and read by the same code.

``ROOT/[training/]patientXXX/{Info.cfg, FRAME.nii.gz, FRAME_gt.nii.gz[, FRAME_prob.npz]}``, FRAME = patientXXX_frameNN

Labels: 0 background, 1 right-ventricle cavity (RV), 2 myocardium (MYO), 3 left-ventricle cavity (LV). A patient has two
cases, end-diastole ("patientXXX_ED") and end-systole ("patientXXX_ES").
Data set: Bernard et al., IEEE TMI 37(11), 2018, doi 10.1109/TMI.2018.2837502, CC BY-NC-SA 4.0.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mbls.data.dataset import Case, Dataset, Volume
from mbls.data.nifti import read_pair
from mbls.files import read_npz

__all__ = [
    "CLASS_NAMES",
    "GROUPS",
    "NUM_CLASSES",
    "PHANTOM_MARKER",
    "PHASES",
    "Patient",
    "find_patients",
    "patient_folders",
    "scan_acdc",
]

CLASS_NAMES = ("background", "RV", "MYO", "LV")
NUM_CLASSES = len(CLASS_NAMES)
PHASES = ("ED", "ES")
#: Normal, dilated and hypertrophic cardiomyopathy, infarction with low ejection fraction, abnormal right ventricle.
GROUPS = ("NOR", "DCM", "HCM", "MINF", "RV")
#: File in the root of a phantom that says how it was made.
PHANTOM_MARKER = "phantom.json"
#: Bytes of an Info.cfg; ACDC's have about 70.
_MAX_INFO = 2**16


@dataclass(frozen=True)
class Patient:
    """One patient's folder and what its Info.cfg says."""

    folder: Path
    ed_frame: int
    es_frame: int
    group: str | None = None

    @property
    def id(self) -> str:
        return self.folder.name

    def path(self, phase: str, kind: str = "image") -> Path:
        """File of a phase, "ED" or "ES"; kind "image", "labels" or "probs"."""
        frame = {"ED": self.ed_frame, "ES": self.es_frame}[phase]
        ending = {"image": ".nii.gz", "labels": "_gt.nii.gz", "probs": "_prob.npz"}[kind]
        return self.folder / f"{self.id}_frame{frame:02d}{ending}"

    def cases(self) -> list[Case]:
        """End-diastole and end-systole."""
        return [
            Case(f"{self.id}_{phase}", self.id, functools.partial(_read_phase, self, phase), self.group)
            for phase in PHASES
        ]


def scan_acdc(root: str | Path) -> tuple[Dataset, dict[str, Exception]]:
    """The data set of a root, and for each patient who cannot be read (patient id) the reason.

    Raises:
        FileNotFoundError: no such folder, or no patient in it.
    """
    patients: list[Patient] = []
    problems: dict[str, Exception] = {}
    for folder in patient_folders(root):
        try:
            patients.append(_read_info(folder))
        except (OSError, ValueError) as error:
            problems[folder.name] = error
    name = "phantom" if (Path(root) / PHANTOM_MARKER).is_file() else "ACDC"
    cases = tuple(case for patient in patients for case in patient.cases())
    return Dataset(name, CLASS_NAMES, cases, ("cine MR",), always_present=CLASS_NAMES[1:]), problems


def find_patients(root: str | Path) -> list[Patient]:
    """All patients under a root (or its ``training`` folder), by name.

    Raises:
        FileNotFoundError: no such folder, no patient in it, or a patient without Info.cfg.
        ValueError: an Info.cfg without frame numbers for ED and ES.
    """
    return [_read_info(folder) for folder in patient_folders(root)]


def patient_folders(root: str | Path) -> list[Path]:
    """The folders patientXXX of a root or of its ``training`` folder.

    Raises:
        FileNotFoundError: no such folder, or no patient in it.
    """
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
    with path.open("rb") as file:
        content = file.read(_MAX_INFO + 1)
    if len(content) > _MAX_INFO:
        raise ValueError(f"{path}: got more than {_MAX_INFO} bytes, expected a few lines such as 'ED: 1'")
    lines = content.decode("utf-8-sig", errors="replace").splitlines()
    entries: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            entries[key.strip()] = value.strip()

    def frame(phase: str) -> int:
        if phase not in entries:
            there = ", ".join(entries) or "none"
            raise ValueError(f"{path}: got no entry {phase!r} (entries: {there}), expected '{phase}: frame number'")
        if not re.fullmatch(r"[0-9]{1,4}", entries[phase]):
            raise ValueError(f"{path}: got {phase}: {entries[phase][:20]!r}, expected a frame number, 0..9999")
        return int(entries[phase])

    return Patient(folder, frame("ED"), frame("ES"), entries.get("Group"))


def _read_phase(patient: Patient, phase: str) -> Volume:
    image, labels, probs = (patient.path(phase, kind) for kind in ("image", "labels", "probs"))
    volume = read_pair([image], labels, NUM_CLASSES)
    if volume.labels.ndim != 3:
        raise ValueError(f"{image}: got shape {volume.labels.shape}, expected 3 dimensions (x, y, z)")
    return volume._replace(truth=_read_probs(probs, volume.labels.shape))


def _read_probs(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """True label probabilities, stored as uint8 in 1/255."""
    if not path.is_file():
        return None
    probs = read_npz(path, ["probs"])["probs"]
    expected = (NUM_CLASSES, *shape)
    if probs.shape != expected or probs.dtype != np.uint8 or not (probs.sum(0, dtype=np.int64) == 255).all():
        raise ValueError(f"{path}: got shape {probs.shape} of {probs.dtype}, expected uint8 {expected} summing to 255")
    return probs.astype(np.float32) / np.float32(255)
