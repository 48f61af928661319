"""Read predictions that any program wrote, and their labels, one case at a time; write probabilities in the same form.

Understood are nnU-Net's ``--save_probabilities`` (CASE.npz with ``probabilities``, axes (K, z, y, x)), what MONAI's
SaveImage and others write as NIfTI, channels last or first, and .npy or .npz with one array. Labels are NIfTI or .npy.

A NIfTI file has the axes (x, y, z), nnU-Net's arrays have (z, y, x); here all is (z, y, x), slices first, as
:func:`mbls.engine.judge.judge` takes its regions slice by slice. A 2-D image is one slice.
"""

from __future__ import annotations

import gzip
import math
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.funcs import as_closest_canonical
from nibabel.orientations import OrientationError

from mbls.data.dataset import check_class_names
from mbls.data.nifti import check_same_grid, open_nifti, read_nifti, shown_label, spacing_of
from mbls.data.nnunet import DESCRIPTION, read_classes, subject_of
from mbls.data.slices import IGNORED
from mbls.engine.predict import Prediction, PredictionFolder, read_kept
from mbls.files import atomic_write, read_json, read_npy, read_npz

__all__ = ["FLOOR", "FoundPredictions", "read_predictions"]

#: Probabilities below it, such as the zeros that nnU-Net writes outside its crop, are raised to it.
FLOOR = 1e-8
_NIFTI = (".nii.gz", ".nii")
_ENDINGS = (".npz", ".npy", *_NIFTI)
#: How far the sum of a voxel's probabilities may be off 1: bfloat16's rounding stays within it.
_OFF_ONE = 1e-2
#: What an nnU-Net folder says about the axes of its arrays.
_PLANS = "plans.json"


@dataclass(frozen=True)
class _Files:
    """Where a case lies, and what is known of it before it is read."""

    id: str
    subject: str
    scores: Path
    labels: Path
    segmentation: Path | None  # nnU-Net writes one beside its probabilities
    class_names: tuple[str, ...]
    ignore_label: int | None
    logits: bool
    reoriented: bool  # the array lies in the orientation RAS, whatever the labels' is


@dataclass(frozen=True)
class _Form:
    """How a stored array becomes (K, z, y, x), and back."""

    reverse: bool
    channel: int
    shape: tuple[int, ...]

    def forward(self, array: np.ndarray) -> np.ndarray:
        array = array.T if self.reverse else array
        return np.moveaxis(array, self.channel, 0).reshape(-1, *self.shape)

    def back(self, scores: np.ndarray, stored: tuple[int, ...]) -> np.ndarray:
        turned = stored[::-1] if self.reverse else stored
        first = (turned[self.channel], *np.delete(turned, self.channel).tolist())
        array = np.moveaxis(scores.reshape(first), 0, self.channel)
        return array.T if self.reverse else array


class FoundPredictions(PredictionFolder):
    """Predictions and labels that other programs wrote; see :func:`read_predictions`."""

    def __init__(self, name: str, folder: Path, files: Sequence[_Files], unmatched: Sequence[str]) -> None:
        super().__init__(name, files[0].class_names, [one.id for one in files], unmatched)
        self.folder = folder
        self._files = {one.id: one for one in files}

    def files(self, case: str) -> tuple[Path, ...]:
        return self._files[case].scores, self._files[case].labels

    def read(self, case: str) -> Prediction:
        one = self._files[case]
        labels, spacing, image = _read_labels(one)
        log_probs, floored = _log_probs(one, _read_scores(one, labels.shape, image)[0])
        return Prediction(case, one.subject, log_probs, torch.from_numpy(labels), spacing, floored=floored)

    def target(self, case: str, folder: Path) -> Path:
        """Where :meth:`write` puts a case."""
        return folder / self._files[case].scores.relative_to(self.folder)

    def write(self, case: str, probs: torch.Tensor, folder: Path) -> Path:
        """Probabilities (K, z, y, x) of a case, in the form that its file has, under the same name in a folder."""
        one = self._files[case]
        labels, _, image = _read_labels(one)
        form = _read_scores(one, labels.shape, image)[1]
        path = self.target(case, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_like(one.scores, form, probs.cpu().numpy(), path)
        return path


def read_predictions(
    folder: str | Path,
    labels: str | Path | None = None,
    *,
    logits: bool = False,
    classes: Sequence[str] | None = None,
    subject: str | None = None,
) -> PredictionFolder:
    """The predictions of a folder with their labels; iterating reads them from disk, one at a time.

    Files are matched by the case: the name without its ending, without nnU-Net's ``_0000`` and without a word that a
    program has added, such as MONAI's ``_trans``. Folders below are looked into.

    Args:
        folder: nnU-Net's, MONAI's, or .npy, .npz or NIfTI files of K numbers a voxel.
        labels: folder of NIfTI or .npy files. None: ``folder`` is one that :func:`mbls.engine.predict.keep` wrote.
        logits: whether the numbers are logits or log-probabilities; else probabilities.
        classes: K names, the background first. None: from the dataset.json beside the predictions, in the labels'
            folder or above it; without one the classes are numbered.
        subject: regular expression that finds the subject in a case, by its first group if it has one. None: each case
            is a subject.

    Returns:
        The cases in the order of subject and name. ``unmatched`` lists what has no partner.

    Raises:
        FileNotFoundError: a folder is missing, or no case is in both.
        ValueError: two predictions of one case; names of classes that do not fit; when iterating, a file that is not
            what was expected, by name.

    References:
        nnunetv2/inference/export_prediction.py and imageio/ of nnU-Net 2.8 for the order of its axes.
    """
    if labels is None:
        return read_kept(folder)
    folder, labels = Path(folder), Path(labels)
    found, answers = _by_name(folder), _by_name(labels)
    if any(name.endswith("_gt") for name in answers):  # ACDC keeps images and labels in one folder
        answers = {name.removesuffix("_gt"): paths for name, paths in answers.items() if name.endswith("_gt")}
    partner: dict[str, list[Path]] = {}
    unmatched = []
    for name, paths in found.items():
        case = next((key for key in _possible_cases(name) if key in answers), None)
        if case is None:
            unmatched.append(f"{paths[-1]}: got no labels {_possible_cases(name)[-1]} in {labels}")
        else:
            partner.setdefault(case, []).extend(paths)
    unmatched += [
        f"{paths[0]}: got no prediction in {folder}" for case, paths in answers.items() if case not in partner
    ]
    if not partner:
        raise FileNotFoundError(
            f"{folder}: got no case that is in {labels} too ({_some(found)} against {_some(answers)}), expected files "
            f"CASE{', CASE'.join(_ENDINGS)} of the same cases"
        )
    name, class_names, ignore_label = _described(folder, labels)
    class_names = class_names if classes is None else tuple(classes)
    if class_names:
        check_class_names("classes", class_names)
    reoriented = _reoriented(folder)
    files = []
    for case, paths in partner.items():
        scores, segmentation = _the_scores(case, paths)
        if len(answers[case]) > 1:
            first, second = answers[case][:2]
            raise ValueError(f"{second}: got the labels of {case} a second time beside {first}, expected one file")
        turned = reoriented and scores.suffix == ".npz"
        owner = subject_of(case, subject)
        files.append(
            _Files(case, owner, scores, answers[case][0], segmentation, class_names, ignore_label, logits, turned)
        )
    if not class_names:
        class_names = _numbered(files)
        files = [replace(one, class_names=class_names) for one in files]
    return FoundPredictions(name, folder, sorted(files, key=lambda one: (one.subject, one.id)), unmatched)


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """Name without ending -> its files, under a folder; hidden ones are left out, and what is no file (a pipe)."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: missing, expected a folder")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        ending = next((ending for ending in _ENDINGS if path.name.endswith(ending)), None)
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if ending is None or hidden or not path.is_file():
            continue
        if not _is_text(str(path)):
            raise ValueError(f"{str(path)!a}: got a name that is no text, expected one in UTF-8")
        found.setdefault(path.name.removesuffix(ending), []).append(path)
    return found


def _is_text(name: str) -> bool:
    """Whether a name can be written into a table; other bytes in a file's name cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _possible_cases(name: str) -> list[str]:
    """What the case may be called whose prediction has this name, the likeliest first."""
    without_word = re.sub(r"_[A-Za-z]+$", "", name)
    names = [name, re.sub(r"_\d{4}$", "", name), without_word, re.sub(r"_\d{4}$", "", without_word)]
    return list(dict.fromkeys(names))


def _the_scores(case: str, paths: list[Path]) -> tuple[Path, Path | None]:
    """The array of a case, and the segmentation beside it: a NIfTI file where there is an .npz or .npy too."""
    arrays = [path for path in paths if not path.name.endswith(_NIFTI)]
    volumes = [path for path in paths if path.name.endswith(_NIFTI)]
    first, *others = arrays or volumes
    if others:
        raise ValueError(f"{others[0]}: got a second prediction of {case} beside {first}, expected one file")
    return first, volumes[0] if arrays and volumes else None


def _some(names: dict[str, Any]) -> str:
    return ", ".join(list(names)[:3]) + (", ..." if len(names) > 3 else "") if names else "nothing"


def _described(folder: Path, labels: Path) -> tuple[str, tuple[str, ...], int | None]:
    """Name, classes (none: not known) and ignore label, from the nearest dataset.json."""
    for place in (folder, labels, labels.resolve().parent):
        if (place / DESCRIPTION).is_file():
            return read_classes(place / DESCRIPTION)
    return folder.resolve().name, (), None


def _reoriented(folder: Path) -> bool:
    """Whether nnU-Net turned images to RAS before it predicted: its arrays stay there, its segmentations do not."""
    if not (folder / _PLANS).is_file():
        return False
    plans = read_json(folder / _PLANS)
    return isinstance(plans, dict) and str(plans.get("image_reader_writer")).endswith("WithReorient")


def _numbered(files: list[_Files]) -> tuple[str, ...]:
    """Names of classes that nothing names: by number, as many as the first file that can be read has."""
    problems = []
    for one in files:
        try:
            labels, _, image = _read_labels(one)
            number = len(_read_scores(one, labels.shape, image)[0])
            return "background", *(f"class {label}" for label in range(1, number))
        except (OSError, ValueError) as error:
            problems.append(error)
    raise problems[0]


def _read_labels(one: _Files) -> tuple[np.ndarray, tuple[float, ...] | None, Any]:
    """Labels (z, y, x) int64 with ignored voxels marked, the spacing, and the NIfTI image where they are one."""
    path = one.labels
    spacing, image = None, None
    if path.name.endswith(_NIFTI):
        stored, image = read_nifti(path)
        if one.reoriented:
            image = _canonical(path, image)
            stored = np.asarray(image.dataobj)
        while stored.ndim > 3 and stored.shape[-1] == 1:
            stored = stored[..., 0]
        known = spacing_of(image, min(stored.ndim, 3))
        spacing = None if known is None else known[::-1]
        stored = stored.T
    else:
        stored = _only_array(path)
    if stored.ndim == 2:
        stored, spacing = stored[None], None if spacing is None else (1.0, *spacing)
    if stored.ndim != 3 or 0 in stored.shape:
        raise ValueError(f"{path}: got shape {stored.shape}, expected labels of 2 or 3 dimensions")
    return _checked_labels(one, stored), spacing, image


def _canonical(path: Path, image: Any) -> Any:
    try:
        return as_closest_canonical(image)
    except OrientationError as error:
        raise ValueError(
            f"{path}: got an affine without an orientation, expected three directions ({error})"
        ) from error


def _checked_labels(one: _Files, stored: np.ndarray) -> np.ndarray:
    path = one.labels
    if stored.dtype.kind not in "iuf":
        raise ValueError(f"{path}: got {stored.dtype}, expected whole numbers")
    with np.errstate(invalid="ignore"):  # what is no such number becomes another, which is refused
        labels = stored.astype(np.int64)
    ignored = labels == one.ignore_label if one.ignore_label is not None else np.False_
    # Without known classes the number of channels is still to be seen.
    most = (len(one.class_names) or 256) - 1
    wrong = ((labels < 0) | (labels > most)) & ~ignored
    if stored.dtype.kind == "f":
        wrong |= labels != stored
    if wrong.any():
        also = "" if one.ignore_label is None else f" or {one.ignore_label} (ignore)"
        first = shown_label(stored[wrong][0])
        raise ValueError(f"{path}: got label {first} ({np.count_nonzero(wrong)} voxels), expected 0..{most}{also}")
    if np.any(ignored):
        labels[ignored] = IGNORED
    return np.ascontiguousarray(labels)


def _only_array(path: Path) -> np.ndarray:
    """The array of an .npy file, or the only one of an .npz file."""
    if path.suffix == ".npy":
        return read_npy(path)
    arrays = read_npz(path)
    if "softmax" in arrays and "probabilities" not in arrays:
        raise ValueError(
            f"{path}: got softmax, as nnU-Net version 1 writes it, cropped to the body; expected version 2's "
            f"probabilities (nnUNetv2_predict --save_probabilities), or the whole volume as .npy"
        )
    if "probabilities" in arrays:
        return arrays["probabilities"]
    if len(arrays) != 1:
        raise ValueError(f"{path}: got the arrays {', '.join(arrays) or 'none'}, expected one, or probabilities")
    return next(iter(arrays.values()))


def _read_scores(one: _Files, shape: tuple[int, ...], image: Any) -> tuple[np.ndarray, _Form]:
    """Scores (K, z, y, x) floating point, as stored but for the order of the axes."""
    path = one.scores
    if path.name.endswith(_NIFTI):
        stored, volume = read_nifti(path)
        if image is not None:
            check_same_grid(path, volume, one.labels, image)
        orders = [True]
    else:
        stored = _only_array(path)
        if one.segmentation is not None and one.labels.name.endswith(_NIFTI):
            check_same_grid(one.segmentation, open_nifti(one.segmentation), one.labels, open_nifti(one.labels))
        # nnU-Net's arrays have the axes of SimpleITK; those of others beside a NIfTI file may have either order.
        orders = [False] if image is None or path.suffix == ".npz" else [False, True]
    if stored.dtype.kind != "f":
        raise ValueError(f"{path}: got {stored.dtype}, expected floating point (a segmentation instead of scores?)")
    form = _form_of(one, stored.shape, shape, orders)
    return form.forward(stored), form


def _form_of(one: _Files, stored: tuple[int, ...], shape: tuple[int, ...], orders: list[bool]) -> _Form:
    def stripped(lengths: Sequence[int]) -> list[int]:
        return [length for length in lengths if length != 1]

    forms = []
    for reverse in orders:
        lengths = list(stored[::-1] if reverse else stored)
        for channel in (0, len(lengths) - 1):
            rest = lengths[:channel] + lengths[channel + 1 :]
            fits = lengths[channel] == len(one.class_names) if one.class_names else lengths[channel] > 1
            if stripped(rest) == stripped(shape) and fits:
                forms.append(_Form(reverse, channel, shape))
    if len(forms) == 1:
        return forms[0]
    path, names = one.scores, one.class_names
    wanted = f"{len(names)} classes ({', '.join(names)})" if names else "a number for each class"
    if forms:
        raise ValueError(
            f"{path}: got shape {stored}, of which several axes may be the classes or the slices; expected NIfTI with "
            f"the classes last, or .npz with the array probabilities, axes (K, z, y, x)"
        )
    if sorted(stripped(stored)) == sorted(stripped(shape)):
        raise ValueError(
            f"{path}: got shape {stored}, one number a voxel (a segmentation, or a sigmoid's foreground); "
            f"expected {wanted} at each voxel (nnUNetv2_predict --save_probabilities, MONAI: save the softmax)"
        )
    raise ValueError(
        f"{path}: got shape {stored}, expected {wanted}, first or last, and {shape} voxels (z, y, x) as "
        f"{one.labels.name} has"
    )


def _log_probs(one: _Files, scores: np.ndarray) -> tuple[torch.Tensor, int]:
    """Logits as they are, or the logarithms of probabilities with the number of those that were raised."""
    path = one.scores
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which is refused
        values = torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32))
    low, high = (float(end) for end in values.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{path}: got NaN or infinite numbers, expected finite ones")
    total = values.sum(0).sub_(1).abs_()
    off = float(total.max())
    are_probs = low >= 0 and high <= 1 + _OFF_ONE and off <= _OFF_ONE
    span = f"values {low:.4g}..{high:.4g}"
    if one.logits:
        if are_probs:
            raise ValueError(
                f"{path}: got {span} that sum to 1, probabilities; expected logits, or no --logits (logits=False)"
            )
        return values, 0
    if not are_probs and (low < 0 or high > 1 + _OFF_ONE):
        what = "log-probabilities" if float(values.exp().sum(0).sub_(1).abs_().max()) <= _OFF_ONE else "logits"
        raise ValueError(f"{path}: got {span}, {what}; expected probabilities in 0..1, or --logits (logits=True)")
    if not are_probs:
        wrong = int((total > _OFF_ONE).sum())
        raise ValueError(
            f"{path}: got sums off 1 by up to {off:.4g} at {wrong} voxels, expected probabilities that sum to 1 over "
            f"the classes (a sigmoid's regions that overlap are not judged)"
        )
    floored = int((values < FLOOR).sum())
    return values.clamp_(min=FLOOR).log_(), floored


def _write_like(source: Path, form: _Form, probs: np.ndarray, path: Path) -> None:
    """Probabilities (K, z, y, x) as a file of the same kind, type and order of axes as another."""
    if source.name.endswith(_NIFTI):
        stored, volume = read_nifti(source)
        header = volume.header.copy()
        header.set_data_dtype(np.float32)
        image = type(volume)(form.back(probs, stored.shape).astype(np.float32), volume.affine, header)
        content = image.to_bytes()
        with atomic_write(path) as part:
            part.write_bytes(gzip.compress(content, 6) if path.suffix == ".gz" else content)
        return
    arrays = {"": read_npy(source)} if source.suffix == ".npy" else read_npz(source)
    name = "probabilities" if "probabilities" in arrays else next(iter(arrays))
    array = form.back(probs, arrays[name].shape).astype(arrays[name].dtype)
    with atomic_write(path) as part, part.open("wb") as file:
        if source.suffix == ".npy":
            np.save(file, array)
            return
        # Not by np.savez, whose own options are the names of arrays too.
        with (
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open(f"{name}.npy", "w", force_zip64=True) as entry,
        ):
            np.lib.format.write_array(entry, array, allow_pickle=False)
