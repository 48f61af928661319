"""Read any data set: which layout a folder has is seen from its files."""

from __future__ import annotations

from pathlib import Path

from mbls.data.acdc import scan_acdc
from mbls.data.dataset import Dataset
from mbls.data.nnunet import DESCRIPTION, scan_nnunet
from mbls.progress import progress_bar

__all__ = ["check_dataset", "read_dataset"]


def read_dataset(root: str | Path, subject: str | None = None) -> Dataset:
    """The data set under a root: nnU-Net's or MSD's layout where there is a dataset.json, else ACDC's.

    Only names and headers of the data set are read here; images and labels at each access to a case.

    Args:
        root: folder.
        subject: in the nnU-Net layout, the regular expression that finds the subject in a case's id; see
            :func:`mbls.data.nnunet.scan_nnunet`.

    Raises:
        FileNotFoundError: no such folder, or nothing of a known layout in it; a case without its image or labels.
        ValueError: a description that cannot be read or is not supported.

    Example:
        >>> import tempfile
        >>> from mbls.data.phantom import make_phantom
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dataset = read_dataset(make_phantom(folder, num_patients=1))
        >>> dataset.name, dataset.class_names, [case.id for case in dataset.cases]
        ('phantom', ('background', 'RV', 'MYO', 'LV'), ['patient001_ED', 'patient001_ES'])
    """
    dataset, problems = _scan(root, subject)
    for problem in problems.values():
        raise problem
    return dataset


def check_dataset(root: str | Path, subject: str | None = None) -> dict[str, list[str]]:
    """Read everything under a root and say what is wrong: subject -> problems (empty when clean).

    Raises:
        FileNotFoundError, ValueError: nothing of a known layout, or a description that cannot be read.
    """
    dataset, problems = _scan(root, subject)
    report = {name: [str(problem)] for name, problem in problems.items()}
    for case in progress_bar(dataset.cases, desc="check", unit="case", leave=False, delay=2):
        found = report.setdefault(case.subject, [])
        try:
            volume = case.read()
        except (OSError, ValueError) as error:
            found.append(str(error))
            continue
        absent = [
            name for name in dataset.always_present if not (volume.labels == dataset.class_names.index(name)).any()
        ]
        if absent:
            found.append(f"{case.id}: got no voxel of {', '.join(absent)}, expected every structure")
        if volume.image.max() == volume.image.min():
            found.append(f"{case.id}: got a constant image, expected anatomy")
    return dict(sorted(report.items()))


def _scan(root: str | Path, subject: str | None) -> tuple[Dataset, dict[str, Exception]]:
    if (Path(root) / DESCRIPTION).is_file():
        return scan_nnunet(root, subject)
    if subject is not None:
        raise ValueError(f"subject: got {subject!r}, expected None: the ACDC layout knows its patients")
    return scan_acdc(root)
