"""A data set that describes itself: its name, its classes, its cases; and how it is parted into train, validation and
test.

A *case* is one image with its labels, a *subject* the person that it shows; a subject may have several cases (two
phases of a heart, two visits), and no split ever parts them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mbls.files import read_json

__all__ = ["Case", "Dataset", "Split", "Volume", "read_split", "repeated", "split"]


class Volume(NamedTuple):
    """The arrays of a case, on the grid of its files; spatial axes as in them, (x, y, z) or (x, y)."""

    image: np.ndarray  # (C, *spatial) float32, intensities as stored
    labels: np.ndarray  # (*spatial) uint8, classes and the data set's ignore label
    spacing: tuple[float, ...] | None  # mm along each spatial axis, None where the files do not know it
    truth: np.ndarray | None  # (K, *spatial) float32, the true label probabilities (phantom only)


@dataclass(frozen=True)
class Case:
    """One image with its labels. Its arrays are read from the files at each access and not kept.

    Attributes:
        id: its name, unique in the data set.
        subject: the person it shows.
        read: reads and checks the files; raises FileNotFoundError or ValueError that name the file.
        group: what splits spread evenly over the sets, such as the diagnosis; None without.
    """

    id: str
    subject: str
    read: Callable[[], Volume] = field(repr=False, compare=False)
    group: str | None = None

    @property
    def image(self) -> np.ndarray:
        """(C, *spatial) float32."""
        return self.read().image

    @property
    def labels(self) -> np.ndarray:
        """(*spatial) uint8."""
        return self.read().labels

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """mm along each spatial axis, None where the files do not know it."""
        return self.read().spacing

    @property
    def truth(self) -> np.ndarray | None:
        """(K, *spatial) float32, the true label probabilities; None but for the phantom."""
        return self.read().truth


@dataclass(frozen=True)
class Dataset:
    """Cases and what their numbers mean.

    Attributes:
        name: what figures and tables call the data.
        class_names: K names by label, index 0 the background.
        cases: in the order to be used; all cases of a subject stand together.
        channel_names: of the image's channels.
        ignore_label: the label of voxels that do not count, None without.
        always_present: the classes that every case must show; a check says where one does not.
    """

    name: str
    class_names: tuple[str, ...]
    cases: tuple[Case, ...]
    channel_names: tuple[str, ...] = ("image",)
    ignore_label: int | None = None
    always_present: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        twice = repeated(case.id for case in self.cases)
        if twice:
            raise ValueError(f"cases: got {', '.join(twice)} more than once, expected each case once")
        check_class_names("class_names", self.class_names)

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def num_classes(self) -> int:
        """K, with the background."""
        return len(self.class_names)

    @property
    def subjects(self) -> dict[str, str | None]:
        """Subject -> group, in the order of the cases."""
        return {case.subject: case.group for case in self.cases}

    def first(self, number: int) -> Dataset:
        """The same data set with the first so many subjects."""
        return self.of(list(self.subjects)[:number])

    def of(self, subjects: Iterable[str]) -> Dataset:
        """The same data set with all cases of some subjects, in the order in which these are named."""
        by_subject: dict[str, list[Case]] = {}
        for case in self.cases:
            by_subject.setdefault(case.subject, []).append(case)
        return replace(self, cases=tuple(case for subject in subjects for case in by_subject[subject]))


class Split(NamedTuple):
    """The three sets; no subject is in two."""

    train: Dataset
    val: Dataset
    test: Dataset


def split(dataset: Dataset, train: int | float, val: int | float, test: int | float, seed: int = 0) -> Split:
    """Split by subject, each group spread over the sets in proportion.

    Subjects are ordered inside their group by a hash of (seed, subject), and the groups interleaved; so the split is
    the same on every machine and version.

    Args:
        dataset: what is to be split.
        train: number of subjects (int), or a fraction of all (float, rounded down; fractions may leave subjects out).
        val: likewise.
        test: likewise.
        seed: another one, another split.

    Raises:
        ValueError: sizes below 0 or of more subjects than there are; an empty training set.
    """
    subjects = dataset.subjects
    sizes = [int(size * len(subjects) + 1e-9) if isinstance(size, float) else size for size in (train, val, test)]
    if min(sizes) < 0 or sum(sizes) > len(subjects) or sizes[0] == 0:
        raise ValueError(
            f"train, val, test: got {train}, {val}, {test} ({sum(sizes)} subjects), "
            f"expected sizes >= 0 with train > 0 that take at most the {len(subjects)} subjects found"
        )
    rank: list[tuple[float, str, str]] = []
    for group in sorted({group or "" for group in subjects.values()}):
        members = [subject for subject, its in subjects.items() if (its or "") == group]
        members.sort(key=lambda subject: hashlib.sha256(f"{seed}:{subject}".encode()).digest())
        rank += [((place + 0.5) / len(members), group, subject) for place, subject in enumerate(members)]
    ordered = [subject for _, _, subject in sorted(rank, key=lambda entry: entry[:2])]
    first, second, third = sizes[0], sizes[0] + sizes[1], sum(sizes)
    return Split(*(dataset.of(part) for part in (ordered[:first], ordered[first:second], ordered[second:third])))


def read_split(path: str | Path, dataset: Dataset) -> Split:
    """A split that is fixed in a file: JSON with the subjects of "train", "val" and "test", each in the order to be
    used.

    Args:
        path: e.g. ``data/acdc_split.json``, whose training patients are ordered so that the first n are balanced by
            group.
        dataset: what is to be split; subjects that the file does not name are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not such a JSON; a subject named twice; one that the data set does not have; no
            training subject.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"split: got {path}, expected a JSON file with the subjects of train, val and test")
    content = read_json(path)
    try:
        named = [[str(name) for name in content[part]] for part in Split._fields]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: cannot be read as a split ({error!r}), expected lists "train", "val" and "test"'
        ) from error
    subjects = [name for part in named for name in part]
    twice = repeated(subjects)
    if twice:
        raise ValueError(f"{path}: got {', '.join(twice)} more than once, expected each subject once")
    absent = _absent(subjects, dataset.subjects)
    if absent:
        raise ValueError(f"{path}: got subjects that {dataset.name} does not have ({absent})")
    if not named[0]:
        raise ValueError(f"{path}: got no training subject, expected at least one")
    return Split(*(dataset.of(part) for part in named))


def check_class_names(argument: str, names: Sequence[str]) -> None:
    """Raise ValueError where tables could not tell the classes apart: ``cece_fg`` is the CECE of the foreground, and
    ``cece_fg_x`` that of class x there.
    """
    regions = ("fg", "boundary")
    taken = {*regions, *(f"{region}_{name}" for region in regions for name in names)} & set(names)
    if len(names) < 2 or repeated(names) or taken:
        raise ValueError(
            f"{argument}: got {', '.join(names)}, expected two or more distinct names, none of them fg or boundary, "
            f"nor one of these with _ before another's name"
        )


def repeated(names: Iterable[str]) -> list[str]:
    """The names that come more than once, each once and in order."""
    return sorted(name for name, times in Counter(names).items() if times > 1)


def _absent(wanted: Sequence[str], there: Iterable[str]) -> str:
    """The first five that are not there, as text; empty where all are."""
    missing = [name for name in wanted if name not in set(there)]
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return ", ".join(missing[:5]) + more
