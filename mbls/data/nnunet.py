"""Read the layout of nnU-Net and of the Medical Segmentation Decathlon (MSD): a dataset.json that names the classes.

``ROOT/{dataset.json, imagesTr/CASE[_0000].nii[.gz], labelsTr/CASE.nii[.gz]}``

Both dialects of dataset.json: nnU-Net version 2 (``"channel_names"``, ``"labels": {name: number}``) and MSD
(``"modality"``, ``"labels": {number: name}``). Several channels are files _0000, _0001, ..., or MSD's one file with the
channels last. Isensee et al., Nature Methods 2021; Antonelli et al., Nature Communications 2022.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbls.data.dataset import Case, Dataset
from mbls.data.nifti import read_pair
from mbls.files import read_json

__all__ = ["DESCRIPTION", "read_classes", "scan_nnunet", "subject_of"]

#: The file that marks the layout.
DESCRIPTION = "dataset.json"
_ENDINGS = (".nii.gz", ".nii")
#: A label is kept in a byte.
_MOST_CLASSES = 255


def scan_nnunet(root: str | Path, subject: str | None = None) -> tuple[Dataset, dict[str, Exception]]:
    """The data set of a root, and for each case whose files do not fit together (case id) the reason.

    Args:
        root: the folder with dataset.json.
        subject: regular expression that finds the subject in a case's id, by its first group if it has one:
            ``"(.*)_visit"``. Default: the id is the subject.

    Raises:
        FileNotFoundError: no such folder, no dataset.json, or no labels.
        ValueError: a dataset.json that cannot be read or asks for what is not supported; an id without a subject.
    """
    root = Path(root)
    path = root / DESCRIPTION
    content = _read_json(path)
    class_names, ignore_label = _classes(path, content)
    channels = _channels(path, content)
    ending = content.get("file_ending")
    if ending is not None and ending not in _ENDINGS:
        raise ValueError(f'{path}: got "file_ending": {ending!r}, expected one of {", ".join(_ENDINGS)}')
    labels = _files(root / "labelsTr")
    if not labels:
        raise FileNotFoundError(f"{root / 'labelsTr'}: got no file CASE.nii.gz or CASE.nii, expected the labels")
    images = _files(root / "imagesTr")
    cases, problems = [], {}
    for name, label_path in labels.items():
        found = _images_of(name, images, len(channels))
        if found is None:
            problems[name] = FileNotFoundError(
                f"{root / 'imagesTr' / name}: missing, expected {name}.nii.gz or {name}_0000.nii.gz "
                f"for {label_path.name}"
            )
            continue
        read = functools.partial(read_pair, found, label_path, len(class_names), ignore_label, len(channels))
        cases.append(Case(name, subject_of(name, subject), read))
    for name in images:
        if name not in labels and re.sub(r"_\d{4}$", "", name) not in labels:
            problems[name] = FileNotFoundError(f"{root / 'labelsTr' / name}: missing, expected the labels of {name}")
    # All cases of a subject stand together, in the order of their names.
    cases.sort(key=lambda case: (case.subject, case.id))
    title = str(content.get("name") or root.resolve().name)
    return Dataset(title, class_names, tuple(cases), channels, ignore_label), problems


def read_classes(path: Path) -> tuple[str, tuple[str, ...], int | None]:
    """The name, the class names by label and the ignore label (None without) that a dataset.json gives.

    Raises:
        FileNotFoundError, ValueError: as :func:`scan_nnunet`.
    """
    content = _read_json(path)
    return str(content.get("name") or path.resolve().parent.name), *_classes(path, content)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"root: got {path.parent}, expected an existing folder in the nnU-Net layout")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing, expected the data set's description")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise ValueError(
            f'{path}: got no "labels" in it, expected {{"background": 0, ...}} or {{"0": "background", ...}}'
        )
    return content


def _classes(path: Path, content: Mapping[str, Any]) -> tuple[tuple[str, ...], int | None]:
    """Class names by label and the ignore label, from either dialect."""
    names: dict[int, str] = {}
    ignore_label = None
    for key, value in content["labels"].items():
        if isinstance(value, (list, tuple)):
            raise ValueError(
                f'{path}: got the region {key!r} of labels {value}, expected one number a class ("{key}": 1)'
            )
        name, number = (value, key) if isinstance(value, str) and _whole(key) is not None else (key, value)
        label = _whole(number)
        if label is None:
            raise ValueError(f"{path}: got the label {key!r}: {value!r}, expected a whole number and a name")
        if label in names or (name == "ignore" and ignore_label is not None):
            raise ValueError(f"{path}: got the label {label} twice, expected each number once")
        if name == "ignore":
            ignore_label = label
        else:
            names[label] = str(name)
    if sorted(names) != list(range(len(names))) or not 2 <= len(names) <= _MOST_CLASSES:
        raise ValueError(
            f"{path}: got the labels {sorted(names)}, expected 0 (the background), 1, 2, ... without a gap, "
            f"2 to {_MOST_CLASSES} classes"
        )
    if ignore_label is not None and (ignore_label in names or not 0 < ignore_label <= _MOST_CLASSES):
        raise ValueError(f"{path}: got the ignore label {ignore_label}, expected a number after the classes'")
    return tuple(names[label] for label in range(len(names))), ignore_label


def _whole(number: Any) -> int | None:
    """The whole number that a JSON key or value stands for, None where it is none."""
    if isinstance(number, bool) or not isinstance(number, (int, str)):
        return None
    return int(number) if re.fullmatch(r"\d{1,9}", str(number)) else None


def _channels(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    given = content.get("channel_names", content.get("modality"))
    if not isinstance(given, dict) or not given:
        raise ValueError(f'{path}: got no "channel_names" or "modality" in it, expected {{"0": "MRI"}}')
    if sorted(given) != sorted(str(number) for number in range(len(given))):
        raise ValueError(f"{path}: got the channels {', '.join(map(str, given))}, expected 0, 1, ... without a gap")
    return tuple(str(given[str(number)]) for number in range(len(given)))


def _files(folder: Path) -> dict[str, Path]:
    """Name without ending -> file, by name; hidden files are none of the data set's."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: missing, expected a folder of .nii.gz or .nii files")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in _ENDINGS if path.name.endswith(ending)), None)
        if path.name.startswith(".") or ending is None:
            continue
        name = path.name.removesuffix(ending)
        if name in found:
            raise ValueError(f"{path}: got the case a second time beside {found[name].name}, expected one file")
        found[name] = path
    if not found and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(
            f"{folder}: got files such as {next(folder.iterdir()).name}, expected {' or '.join(_ENDINGS)}; "
            f"other file endings are not supported"
        )
    return found


def _images_of(name: str, images: Mapping[str, Path], channels: int) -> list[Path] | None:
    """The channels of a case in their order, or its one file; None where there is neither."""
    numbered = [images[f"{name}_{number:04d}"] for number in range(channels) if f"{name}_{number:04d}" in images]
    if numbered:
        return numbered
    return [images[name]] if name in images else None


def subject_of(case: str, pattern: str | None) -> str:
    """The subject of a case: what a regular expression finds in the id, its first group if it has one.

    Args:
        case: the id.
        pattern: None: the id is the subject.

    Raises:
        ValueError: not a regular expression, or one that finds nothing.

    Example:
        >>> subject_of("anna_visit2", "(.*)_visit")
        'anna'
    """
    if pattern is None:
        return case
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"subject: got {pattern!r}, expected a regular expression ({error})") from error
    match = compiled.search(case)
    found = None if match is None else match[1] if compiled.groups else match[0]
    if not found:
        raise ValueError(f"subject: got {pattern!r}, which finds nothing in the case {case!r}")
    return found
