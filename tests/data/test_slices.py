"""Slices: one grid for image, labels and truth; scaling, augmentation, and the fingerprint of what was read."""

import gzip
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from mbls.data.layout import read_dataset
from mbls.data.slices import SliceDataset, augmentation, fingerprint


def only_first_case(dataset):
    return replace(dataset, cases=dataset.cases[:1])


def test_slices(phantom):
    data = SliceDataset(phantom, size=48, crop=96)
    count = sum(case.labels.shape[2] for case in phantom.cases)
    assert data.images.shape == (count, 1, 48, 48)
    assert data.labels.shape == (count, 48, 48)
    assert data.volumes[-1].stop == count == len(data)
    assert data.volumes[0].spacing == (10.0, 3.0, 3.0)
    image, label = data[3]
    assert (image.dtype, label.dtype, image.shape, label.shape) == (torch.float32, torch.int64, (1, 48, 48), (48, 48))
    torch.testing.assert_close(data.truth.sum(1), torch.ones(count, 48, 48), atol=1e-5, rtol=0)
    # Image, labels and probabilities went through the same grid: the labels follow their probabilities.
    likely = data.truth.argmax(1)
    assert (likely == data.labels).float().mean() > 0.97


def test_crop_keeps_the_centre_and_pads_with_background(phantom):
    volume = phantom.cases[0].read()
    data = SliceDataset(only_first_case(phantom), size=200, scaling="none")
    nx, ny, _ = volume.labels.shape
    x, y = (200 - nx) // 2, (200 - ny) // 2
    np.testing.assert_array_equal(data.images[:, 0, x : x + nx, y : y + ny].numpy(), volume.image[0].transpose(2, 0, 1))
    assert (data.images[:, 0, :x] == 0).all()
    assert (data.labels[:, :x] == 0).all()
    assert (data.truth[:, 0, :x] == 1).all()


def test_scaling(phantom):
    nx, ny, _ = phantom.cases[0].labels.shape
    zscore = SliceDataset(only_first_case(phantom), size=min(nx, ny)).images
    assert abs(zscore.mean()) < 0.3
    assert 0.7 < zscore.std() < 1.3
    percentile = SliceDataset(phantom.first(1), size=64, scaling="percentile").images
    assert percentile.min() >= 0
    assert percentile.max() <= 1


def test_resampling_to_a_voxel_size(phantom):
    fine = SliceDataset(only_first_case(phantom), size=200)
    coarse = SliceDataset(only_first_case(phantom), size=100, spacing=3.0)
    assert coarse.volumes[0].spacing == (10.0, 3.0, 3.0)
    ratio = (fine.labels > 0).sum() / (coarse.labels > 0).sum()
    assert ratio.item() == pytest.approx(4, rel=0.05)


def test_augmentation_moves_image_and_labels_together_and_repeats(phantom):
    transform = augmentation(1.0)
    data = SliceDataset(phantom.first(1), size=96, transform=transform)
    transform.set_random_state(seed=1)
    image, label = data[4]
    transform.set_random_state(seed=1)
    again, label_again = data[4]
    assert torch.equal(image, again)
    assert torch.equal(label, label_again)
    assert not torch.equal(label, data.labels[4].long())
    assert set(label.unique().tolist()) <= {0, 1, 2, 3}


def test_fingerprint_follows_the_content_not_the_files(phantom, phantom_root, tmp_path):
    shutil.copytree(phantom_root / "training" / "patient001", tmp_path / "training" / "patient001")
    labels = tmp_path / "training" / "patient001" / "patient001_frame01_gt.nii.gz"
    labels.write_bytes(gzip.compress(gzip.decompress(labels.read_bytes()), compresslevel=1))

    def of(dataset):
        return fingerprint(SliceDataset(dataset, size=32))

    before = of(phantom.first(1))
    assert of(read_dataset(tmp_path)) == before
    both = SliceDataset(phantom.first(2), size=32)
    assert fingerprint(both) != before
    assert fingerprint(both.first_subjects(1)) == before
    image = nib.load(labels)
    changed = np.asarray(image.dataobj).copy()
    changed[0, 0, 0] = 1
    nib.save(nib.Nifti1Image(changed, image.affine), labels)
    assert of(read_dataset(tmp_path)) != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size, crop: got 0"),
        ({"scaling": "minmax"}, "scaling: got 'minmax'"),
        ({"spacing": -1.0}, "spacing: got -1"),
    ],
)
def test_bad_options(phantom, options, message):
    with pytest.raises(ValueError, match=message):
        SliceDataset(phantom.first(1), **{"size": 32, **options})
    with pytest.raises(ValueError, match="dataset: got no case"):
        SliceDataset(phantom.first(0))
    with pytest.raises(ValueError, match="probability: got 2"):
        augmentation(2)
