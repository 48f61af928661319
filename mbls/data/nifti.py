"""Image and labels of a case from NIfTI files, checked before anybody works with them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from mbls.data.dataset import Volume
from mbls.files import MAX_BYTES

__all__ = ["check_same_grid", "open_nifti", "read_nifti", "read_pair", "shown_label", "spacing_of"]

#: By how much two affines of one case may differ, in mm.
_SAME_GRID = 1e-3
#: As float32 they fill :data:`~mbls.files.MAX_BYTES`: 512 x 512 x 2048.
_MAX_VOXELS = MAX_BYTES // 4
#: Bytes of the header and of what may stand between it and the voxels, such as a DICOM header.
_MAX_HEADER = 2**20


def read_pair(
    images: Sequence[Path], labels: Path, num_classes: int, ignore_label: int | None = None, channels: int | None = None
) -> Volume:
    """Image and labels of one case, without its truth.

    Spacing counts as unknown where the header names no unit and all voxel sizes are 1. A header that claims more
    voxels than fit into :data:`~mbls.files.MAX_BYTES` as float32 is refused before anything is unpacked.

    Args:
        images: a file a channel, or one file whose last axis holds the channels where ``channels`` is above 1.
        labels: the file of the labels.
        num_classes: K; labels are 0..K-1.
        ignore_label: a further label that is allowed.
        channels: how many are expected; None takes a file for a channel.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file that cannot be read to its end, is too large, holds no plain numbers or has voxels without a
            size; an image that is not finite or not 2-D or 3-D; labels of another grid than the image's, or of a class
            that is not known.
    """
    channels = len(images) if channels is None else channels
    parts = [read_nifti(path) for path in images]
    if channels > 1 and len(parts) == 1:
        array, spatial = parts[0]
        if array.ndim != 4 or array.shape[-1] != channels:
            raise ValueError(
                f"{images[0]}: got one file of shape {array.shape} for this case, expected {channels} files, "
                f"one a channel, or the shape (x, y, z, {channels})"
            )
        arrays = list(np.moveaxis(array, -1, 0))
    elif len(parts) != channels:
        raise ValueError(f"{images[0]}: got {len(parts)} channel file(s) for this case, expected {channels}")
    else:
        arrays, spatial = [array for array, _ in parts], parts[0][1]
        for path, (array, header) in zip(images[1:], parts[1:], strict=True):
            _check_grid(path, array.shape, header, images[0], arrays[0].shape, spatial)
    shape = arrays[0].shape
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"{images[0]}: got shape {shape}, expected 2 or 3 dimensions (x, y[, z])")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which is refused
        image = np.stack(arrays).astype(np.float32)
    if not np.isfinite(image).all():
        raise ValueError(
            f"{images[0]}: got {np.count_nonzero(~np.isfinite(image))} NaN or infinite intensities, expected none"
        )
    classes, header = read_nifti(labels)
    _check_grid(labels, classes.shape, header, images[0], shape, spatial)
    allowed = [*range(num_classes), *([] if ignore_label is None else [ignore_label])]
    wrong = ~np.isin(classes, allowed)
    if wrong.any():
        also = "" if ignore_label is None else f" or {ignore_label} (ignore)"
        raise ValueError(
            f"{labels}: got label {shown_label(classes[wrong][0])} ({np.count_nonzero(wrong)} voxels), "
            f"expected 0..{num_classes - 1}{also}"
        )
    return Volume(image, classes.astype(np.uint8), spacing_of(spatial, len(shape)), None)


def shown_label(label: np.generic) -> str:
    """A label with all its digits: 1.0000001 is not 1."""
    return str(label.item()).removesuffix(".0")


def read_nifti(path: Path) -> tuple[np.ndarray, Any]:
    """The array of a NIfTI file and the image that it came from, which knows the grid; of any number of dimensions.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as :func:`read_pair`.
    """
    volume = open_nifti(path)
    with _told(path):
        return np.asarray(volume.dataobj), volume


def open_nifti(path: Path) -> Any:
    """The image of a NIfTI file: its grid is known, its voxels are still on the disk.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_nifti`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing, expected a NIfTI volume")
    with _told(path):
        _check_header(path)
        return nib.load(path)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What is wrong with a file, with its name."""
    try:
        yield
    except PermissionError:
        raise
    except _WrongHeader as error:
        raise ValueError(f"{path}: got {error}") from error
    except Exception as error:  # each kind of damage has its own
        raise ValueError(
            f"{path}: cannot be read as NIfTI ({error}), expected a complete file; fetch or make it again"
        ) from error


class _WrongHeader(Exception):
    """What the header says, and what is expected."""


def _check_header(path: Path) -> None:
    """Look at what a file claims before anything is unpacked: it may claim more than the machine has."""
    with ImageOpener(str(path)) as file:
        block = file.read(540)
    # A header begins with its own size, in either order of bytes.
    second = 540 in (int.from_bytes(block[:4], order) for order in ("little", "big"))
    header: Any = nib.Nifti2Header(block, check=False) if second else nib.Nifti1Header(block[:348], check=False)
    shape, dtype, _ = header.get_data_shape(), header.get_data_dtype(), header.get_xyzt_units()
    if dtype.kind not in "iuf":
        raise _WrongHeader(f"voxels of {dtype}, expected whole numbers or floating point")
    if any(length < 0 for length in shape) or math.prod(map(int, shape)) > _MAX_VOXELS:
        raise _WrongHeader(f"the shape {shape}, expected at most {_MAX_VOXELS} voxels")
    offset = float(header["vox_offset"])
    if not 0 <= offset <= _MAX_HEADER:
        raise _WrongHeader(f"voxels from byte {offset:g} on, expected at most {_MAX_HEADER} bytes before them")
    spacing = [float(step) for step in header["pixdim"][1 : 1 + min(len(shape), 3)]]
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        raise _WrongHeader(f"the voxel sizes {spacing}, expected finite numbers > 0 in mm")
    if not np.isfinite(header.get_best_affine()).all():
        raise _WrongHeader("an affine that is not finite, expected a position in mm")


def _check_grid(
    path: Path,
    shape: tuple[int, ...],
    volume: Any,
    image_path: Path,
    image_shape: tuple[int, ...],
    image: Any,
) -> None:
    if shape != image_shape:
        raise ValueError(f"{path}: got shape {shape}, expected {image_shape} as in {image_path.name}")
    check_same_grid(path, volume, image_path, image)


def check_same_grid(path: Path, volume: Any, image_path: Path, image: Any) -> None:
    """Raise ValueError where the affines of two NIfTI files differ by more than a thousandth of a millimetre."""
    off = np.abs(volume.affine - image.affine).max()
    if not off <= _SAME_GRID:  # NaN is no grid either
        raise ValueError(
            f"{path}: lies on another grid than {image_path.name}: the affines differ by up to {off:.4g}, "
            f"expected at most {_SAME_GRID:g} (a mirrored, shifted or resampled file?)"
        )


def spacing_of(volume: Any, dims: int) -> tuple[float, ...] | None:
    """Millimetres along the first ``dims`` axes; None where the header names no unit and all sizes are 1."""
    zooms = tuple(float(size) for size in volume.header.get_zooms()[:dims])
    unknown = volume.header.get_xyzt_units()[0] == "unknown" and set(zooms) == {1.0}
    return None if unknown else zooms
