"""2-D slices of a data set's cases, prepared once and held in memory."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from mbls.data.dataset import Dataset, Volume
from mbls.progress import progress_bar

__all__ = ["IGNORED", "Scaling", "SliceDataset", "VolumeSlices", "augmentation", "fingerprint"]

#: The label of a voxel that does not count, as torch's and the package's losses have it.
IGNORED = -100
#: How the intensities of a volume are scaled.
Scaling = Literal["zscore", "percentile", "none"]
#: Side of the largest slice, in voxels.
_MAX_SIZE = 4096


class VolumeSlices(NamedTuple):
    """Where a case's slices lie in a SliceDataset: ``[start:stop]``, in the order of the file."""

    id: str
    subject: str
    group: str | None
    start: int
    stop: int
    spacing: (
        tuple[float, float, float] | None
    )  # (slice, row, column) in mm, after resizing; a 2-D image's slice is 1 mm


class SliceDataset(torch.utils.data.Dataset):
    """All slices of some cases along their last axis, prepared once and held in memory; a 2-D image is one slice.

    Args:
        dataset: the cases, e.g. a part of a :class:`mbls.data.dataset.Split`.
        size: side of the square slice given to the network, in voxels.
        crop: side of the centred square taken from the image (zero-padded where the image is smaller), in voxels;
            resized to ``size`` where it differs. Default: ``size``, no resizing.
        scaling: "zscore" (mean 0, deviation 1 over a channel of the volume), "percentile" (1st..99th to 0..1, clipped)
            or "none".
        spacing: resample in plane to this many mm a voxel first; needs files that know their spacing.
        transform: called on {"image": (C, H, W), "label": (1, H, W)} at each access, e.g. :func:`augmentation`.

    Items: image (C, size, size) float32, label (size, size) int64.

    Attributes:
        name: what the data are called.
        class_names: K names by label, index 0 the background.
        images: (N, C, size, size) float32.
        labels: (N, size, size) uint8; int16 with :data:`IGNORED` in a data set that has an ignore label.
        truth: (N, K, size, size) float32, the true label probabilities; None where they are not known.
        volumes: a :class:`VolumeSlices` for each case.
        digests: case id -> SHA-256 of its arrays as they were read, hexadecimal.

    Raises:
        ValueError: no case; options out of range; spacing asked of a file that does not know it.
        FileNotFoundError, ValueError: as reading a case raises.

    References:
        The protocol of the official code of arXiv 2209.09641 is ``size=192, crop=192``.
    """

    def __init__(
        self,
        dataset: Dataset,
        size: int = 192,
        crop: int | None = None,
        scaling: Scaling = "zscore",
        spacing: float | None = None,
        transform: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None,
    ) -> None:
        crop = size if crop is None else crop
        if not dataset.cases:
            raise ValueError("dataset: got no case, expected at least one")
        if not (1 <= size <= _MAX_SIZE and 1 <= crop <= _MAX_SIZE):
            raise ValueError(f"size, crop: got {size}, {crop}, expected 1 to {_MAX_SIZE} voxels")
        if scaling not in get_args(Scaling):
            raise ValueError(f'scaling: got {scaling!r}, expected "zscore", "percentile" or "none"')
        if spacing is not None and not spacing > 0:
            raise ValueError(f"spacing: got {spacing}, expected millimetres > 0")
        self.name = dataset.name
        self.class_names = dataset.class_names
        self.transform = transform
        self.volumes: list[VolumeSlices] = []
        self.digests: dict[str, str] = {}
        images, labels, truth = [], [], []
        for case in progress_bar(dataset.cases, desc="read", unit="case", leave=False, delay=30):
            volume = case.read()
            self.digests[case.id] = _digest(volume)
            volume = _stack_of_slices(volume)
            grid = _Grid(volume, size, crop, spacing, case.id)
            start = self.volumes[-1].stop if self.volumes else 0
            stop = start + volume.labels.shape[2]
            self.volumes.append(VolumeSlices(case.id, case.subject, case.group, start, stop, grid.spacing))
            images.append(grid.image(_scaled(volume.image, scaling)))
            labels.append(_with_ignored(grid.labels(volume.labels), dataset.ignore_label))
            truth.append(None if volume.truth is None else grid.truth(volume.truth))
        self.images = torch.cat(images)
        self.labels = torch.cat(labels)
        known = [part for part in truth if part is not None]
        self.truth = torch.cat(known) if len(known) == len(truth) else None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """K, with the background."""
        return len(self.class_names)

    @property
    def num_channels(self) -> int:
        """C of the images."""
        return self.images.shape[1]

    @property
    def num_subjects(self) -> int:
        return len({volume.subject for volume in self.volumes})

    def first_subjects(self, number: int) -> SliceDataset:
        """The slices of the first so many subjects; views of this set's memory."""
        kept = list(dict.fromkeys(volume.subject for volume in self.volumes))[:number]
        part = copy.copy(self)
        part.volumes = [volume for volume in self.volumes if volume.subject in kept]
        part.digests = {volume.id: self.digests[volume.id] for volume in part.volumes}
        stop = part.volumes[-1].stop
        part.images, part.labels = self.images[:stop], self.labels[:stop]
        part.truth = None if self.truth is None else self.truth[:stop]
        return part

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = self.images[index], self.labels[index]
        if self.transform is not None:
            item = self.transform({"image": image, "label": label.unsqueeze(0)})
            image, label = torch.as_tensor(item["image"]), torch.as_tensor(item["label"]).squeeze(0)
        return image, label.long()


def fingerprint(*datasets: SliceDataset) -> str:
    """SHA-256 over the arrays of all cases as they were read, first 16 hex digits: names the data that a result came
    from.

    The same for the same arrays, whichever layout and compression they are stored in.
    """
    whole = hashlib.sha256()
    for case, digest in sorted(entry for dataset in datasets for entry in dataset.digests.items()):
        whole.update(f"{case} {digest}\n".encode())
    return whole.hexdigest()[:16]


def _digest(volume: Volume) -> str:
    digest = hashlib.sha256(f"{volume.image.shape}".encode())
    digest.update(np.ascontiguousarray(volume.image).tobytes())
    digest.update(np.ascontiguousarray(volume.labels).tobytes())
    return digest.hexdigest()


def _stack_of_slices(volume: Volume) -> Volume:
    """A 2-D image as a volume of one slice, of 1 mm where its voxel size is known."""
    if volume.labels.ndim == 3:
        return volume
    spacing = None if volume.spacing is None else (*volume.spacing, 1.0)
    truth = None if volume.truth is None else volume.truth[..., None]
    return Volume(volume.image[..., None], volume.labels[..., None], spacing, truth)


def _with_ignored(labels: torch.Tensor, ignore_label: int | None) -> torch.Tensor:
    return labels if ignore_label is None else labels.to(torch.int16).masked_fill(labels == ignore_label, IGNORED)


def _scaled(image: np.ndarray, scaling: Scaling) -> np.ndarray:
    """The channels (C, *spatial), each scaled by itself."""
    from monai.transforms import NormalizeIntensity, ScaleIntensityRangePercentiles

    if scaling == "none":
        return image
    if scaling == "zscore":
        scale = NormalizeIntensity()
    else:
        scale = ScaleIntensityRangePercentiles(lower=1, upper=99, b_min=0, b_max=1, clip=True)
    return np.stack([np.asarray(scale(channel)) for channel in image])


class _Grid:
    """Brings arrays from a file's grid to the network's; slices travel in the channel dimension of MONAI's 2-D
    transforms."""

    def __init__(self, volume: Volume, size: int, crop: int, spacing: float | None, name: str) -> None:
        from monai.transforms import ResizeWithPadOrCrop

        self.resampled: tuple[int, int] | None = None
        in_plane = None if volume.spacing is None else volume.spacing[:2]
        if spacing is not None:
            if in_plane is None:
                raise ValueError(f"{name}: the files do not know their voxel size, expected spacing=None")
            rows, columns = (
                max(1, round(n * have / spacing)) for n, have in zip(volume.labels.shape[:2], in_plane, strict=True)
            )
            self.resampled = (rows, columns)
            in_plane = (spacing, spacing)
        self.resized = None if size == crop else (size, size)
        self.crop = ResizeWithPadOrCrop(spatial_size=(crop, crop))
        scale = crop / size
        self.spacing: tuple[float, float, float] | None = None
        if volume.spacing is not None and in_plane is not None:
            self.spacing = (volume.spacing[2], in_plane[0] * scale, in_plane[1] * scale)

    def _through(self, volume: np.ndarray, mode: str) -> torch.Tensor:
        """(x, y, z) on the file's grid -> (z, size, size)."""
        from monai.transforms import Resize

        def resize(tensor: torch.Tensor, to: tuple[int, int]) -> torch.Tensor:
            shrinks = to[0] < tensor.shape[1] and mode == "bilinear"
            return Resize(to, mode=mode, anti_aliasing=shrinks)(tensor)

        tensor = torch.as_tensor(np.ascontiguousarray(volume.transpose(2, 0, 1), dtype=np.float32))
        if self.resampled is not None:
            tensor = resize(tensor, self.resampled)
        tensor = self.crop(tensor)
        if self.resized is not None:
            tensor = resize(tensor, self.resized)
        return torch.as_tensor(tensor).as_subclass(torch.Tensor)

    def image(self, image: np.ndarray) -> torch.Tensor:
        return torch.stack([self._through(channel, "bilinear") for channel in image], dim=1)

    def labels(self, labels: np.ndarray) -> torch.Tensor:
        return self._through(labels, "nearest-exact").to(torch.uint8)

    def truth(self, truth: np.ndarray) -> torch.Tensor:
        structures = [self._through(part, "bilinear").clamp(min=0) for part in truth[1:]]
        stacked = torch.stack(structures, dim=1)
        # The padding is background; so the background takes what the structures leave.
        return torch.cat([(1 - stacked.sum(1, keepdim=True)).clamp(min=0), stacked], dim=1)


def augmentation(probability: float = 0.5) -> Any:
    """Mild augmentation for slices, by MONAI: rotation, scaling and shift, contrast, noise.

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
