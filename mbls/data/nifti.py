"""Image and labels of a case from NIfTI files, checked before anybody works with them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from mbls.data.dataset import Volume

__all__ = ["read_pair"]

#: By how much two affines of one case may differ, in mm.
_SAME_GRID = 1e-3


def read_pair(
    images: Sequence[Path], labels: Path, num_classes: int, ignore_label: int | None = None, channels: int | None = None
) -> Volume:
    """Image and labels of one case, without its truth.

    Spacing counts as unknown where the header names no unit and all voxel sizes are 1.

    Args:
        images: a file a channel, or one file whose last axis holds the channels where ``channels`` is above 1.
        labels: the file of the labels.
        num_classes: K; labels are 0..K-1.
        ignore_label: a further label that is allowed.
        channels: how many are expected; None takes a file for a channel.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file that cannot be read to its end; an image that is not finite or not 2-D or 3-D; labels of
            another grid than the image's, or of a class that is not known.
    """
    channels = len(images) if channels is None else channels
    parts = [_read(path) for path in images]
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
    image = np.stack(arrays).astype(np.float32)
    if not np.isfinite(image).all():
        raise ValueError(
            f"{images[0]}: got {np.count_nonzero(~np.isfinite(image))} NaN or infinite intensities, expected none"
        )
    classes, header = _read(labels)
    _check_grid(labels, classes.shape, header, images[0], shape, spatial)
    allowed = [*range(num_classes), *([] if ignore_label is None else [ignore_label])]
    wrong = ~np.isin(classes, allowed)
    if wrong.any():
        also = "" if ignore_label is None else f" or {ignore_label} (ignore)"
        first = str(classes[wrong][0].item()).removesuffix(".0")  # all its digits: 1.0000001 is not 1
        raise ValueError(
            f"{labels}: got label {first} ({np.count_nonzero(wrong)} voxels), expected 0..{num_classes - 1}{also}"
        )
    return Volume(image, classes.astype(np.uint8), _spacing(spatial, len(shape)), None)


def _read(path: Path) -> tuple[np.ndarray, Any]:
    """The array and the image that it came from, which knows the grid."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing, expected a NIfTI volume")
    try:
        volume: Any = nib.load(path)  # its declared type is a base class without dataobj
        return np.asarray(volume.dataobj), volume
    except (EOFError, OSError, zlib.error, ImageFileError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read as NIfTI ({error}), expected a complete file; fetch or make it again"
        ) from error


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
    off = np.abs(volume.affine - image.affine).max()
    if not off <= _SAME_GRID:  # NaN is no grid either
        raise ValueError(
            f"{path}: lies on another grid than {image_path.name}: the affines differ by up to {off:.4g}, "
            f"expected at most {_SAME_GRID:g} (a mirrored, shifted or resampled file?)"
        )


def _spacing(volume: Any, dims: int) -> tuple[float, ...] | None:
    zooms = tuple(float(size) for size in volume.header.get_zooms()[:dims])
    unknown = volume.header.get_xyzt_units()[0] == "unknown" and set(zooms) == {1.0}
    return None if unknown else zooms
