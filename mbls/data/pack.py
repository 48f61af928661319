"""A data set in one small file that is easy to copy to another machine: the middle of each volume, in ACDC's layout."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np

from mbls.data.acdc import PHASES, find_patients
from mbls.files import atomic_write
from mbls.progress import progress_bar

__all__ = ["pack_patients"]


def pack_patients(root: str | Path, out: str | Path, size: int = 192) -> Path:
    """Write the central size x size voxels of every slice of ED and ES, labels and Info.cfg into a .tar.xz.

    ``tar xf`` unpacks it into a folder in the ACDC layout. Intensities are stored in 256 steps of each volume's range,
    which is finer than the noise of MR. Labels are stored unchanged. "zscore" and "percentile" are later computed over
    the voxels that were kept. The phantom's true probabilities are left out.

    Args:
        root: folder in the ACDC layout.
        out: file to write, ending in .tar.xz.
        size: voxels along x and y that are kept, >= 1.

    Returns:
        The path ``out``.

    Raises:
        ValueError: a size below 1; another ending; a volume that cannot be read (then no file is written).
    """
    out = Path(out)
    if size < 1:
        raise ValueError(f"size: got {size}, expected at least 1 voxel")
    if not out.name.endswith(".tar.xz"):
        raise ValueError(f"out: got {out}, expected a name that ends in .tar.xz")
    patients = find_patients(root)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as part, tarfile.open(part, "w:xz") as archive:
        for patient in progress_bar(patients, desc="pack", unit="patient", leave=False):
            files = {"Info.cfg": (patient.folder / "Info.cfg").read_bytes()}
            for case in patient.cases():
                case.read()  # raises where something is wrong with it
            for phase in PHASES:
                for kind in ("image", "labels"):
                    path = patient.path(phase, kind)
                    # Not deflated twice: xz makes less of a compressed stream.
                    volume = _in_bytes(_middle(nib.Nifti1Image.from_filename(path), size))
                    files[path.name] = gzip.compress(volume.to_bytes(), compresslevel=0, mtime=0)
            for name, content in files.items():
                entry = tarfile.TarInfo(f"training/{patient.id}/{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return out


def _middle(volume: nib.Nifti1Image, size: int) -> nib.Nifti1Image:
    """The voxels that MONAI's centre crop takes; a shorter axis stays as it is."""
    cut = []
    for length in volume.shape[:2]:
        start = max(0, length // 2 - size // 2)
        cut.append(slice(start, start + size))
    return volume.slicer[tuple(cut)]


def _in_bytes(volume: nib.Nifti1Image) -> nib.Nifti1Image:
    """One byte a voxel. With more than 256 different values, nibabel writes slope and intercept into the header."""
    if volume.get_data_dtype() != np.uint8:
        volume = nib.Nifti1Image(volume.get_fdata(), volume.affine, volume.header)
        volume.set_data_dtype(np.uint8)
    return volume
