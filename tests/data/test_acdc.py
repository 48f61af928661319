"""Reading, splitting and slicing the ACDC layout: on a small phantom, on damaged copies of it, and on the real volumes."""

import json
import shutil
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
import torch

from mbls.data.acdc import (
    GROUPS,
    PHASES,
    Patient,
    SliceDataset,
    augmentation,
    check_patients,
    find_patients,
    fingerprint,
    read_split,
    read_volume,
    split_patients,
)


@pytest.fixture
def damaged_root(phantom_root, tmp_path):
    """A copy of one patient, to be broken."""
    shutil.copytree(phantom_root / "training" / "patient001", tmp_path / "training" / "patient001")
    return tmp_path


def test_info_with_and_without_the_optional_entries(phantom_patients, tmp_path):
    patient = phantom_patients[0]
    assert (patient.id, patient.ed_frame, patient.es_frame, patient.group, patient.num_frames) == (
        "patient001",
        1,
        11,
        "NOR",
        30,
    )
    assert patient.height > 100
    folder = tmp_path / "patient007"
    folder.mkdir()
    (folder / "Info.cfg").write_text("ED: 1\nES: 12\n")
    (bare,) = find_patients(tmp_path)
    assert (bare.es_frame, bare.group, bare.height, bare.weight, bare.num_frames) == (12, None, None, None, None)


def test_volume(phantom_patients):
    volume = read_volume(phantom_patients[0], "ED")
    assert volume.image.shape == volume.labels.shape == volume.probs.shape[1:]
    assert volume.image.dtype == np.float32
    assert volume.spacing == (1.5, 1.5, 10.0)
    assert set(np.unique(volume.labels)) == {0, 1, 2, 3}


def test_spacing_is_unknown_without_unit_and_size(damaged_root):
    path = damaged_root / "training" / "patient001" / "patient001_frame01.nii.gz"
    data = np.asarray(nib.load(path).dataobj)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    (patient,) = find_patients(damaged_root)
    assert read_volume(patient, "ED").spacing is None
    with pytest.raises(ValueError, match="does not know its voxel size"):
        SliceDataset([patient], size=32, spacing=1.5)


def overwrite(name, change):
    """A way to damage a copy: rewrite one of its files from its bytes."""

    def damage(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def relabel(folder, change, name="patient001_frame01_gt.nii.gz"):
    image = nib.load(folder / name)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), folder / name)


def set_first(labels, value):
    labels = labels.copy()
    labels[0, 0, 0] = value
    return labels


def poison(folder):
    path = folder / "patient001_frame01.nii.gz"
    image = np.asarray(nib.load(path).dataobj).astype(np.float32)
    nib.save(nib.Nifti1Image(set_first(image, np.nan), np.eye(4)), path)


DAMAGE = {
    "missing image": (
        lambda folder: (folder / "patient001_frame01.nii.gz").unlink(),
        "patient001_frame01.nii.gz: missing",
    ),
    "missing labels": (lambda folder: (folder / "patient001_frame11_gt.nii.gz").unlink(), "frame11_gt.nii.gz: missing"),
    "truncated gzip": (
        overwrite("patient001_frame01.nii.gz", lambda data: data[: len(data) // 2]),
        "frame01.nii.gz: cannot be read",
    ),
    "truncated to nothing": (
        overwrite("patient001_frame01.nii.gz", lambda data: b""),
        "frame01.nii.gz: cannot be read",
    ),
    "not gzip": (
        overwrite("patient001_frame01_gt.nii.gz", lambda data: b"hello" * 100),
        "frame01_gt.nii.gz: cannot be read",
    ),
    "labels of another shape": (
        lambda folder: relabel(folder, lambda labels: labels[1:]),
        "frame01_gt.nii.gz: got shape",
    ),
    "label 7": (
        lambda folder: relabel(folder, lambda labels: set_first(labels, 7)),
        r"got label 7 \(1 voxels\), expected 0..3",
    ),
    "no RV": (lambda folder: relabel(folder, lambda labels: np.where(labels == 1, 0, labels)), "got no voxel of RV"),
    "NaN intensity": (poison, "got 1 NaN"),
    "no ED": (
        lambda folder: (folder / "Info.cfg").write_text("ES: 11\nGroup: NOR\n"),
        r"no entry 'ED' \(entries: ES, Group\)",
    ),
    "ED no number": (lambda folder: (folder / "Info.cfg").write_text("ED: first\nES: 11\n"), "got ED: 'first'"),
    "no Info": (lambda folder: (folder / "Info.cfg").unlink(), "Info.cfg: missing"),
    "damaged probs": (
        overwrite("patient001_frame01_prob.npz", lambda data: data[:1000]),
        "frame01_prob.npz: cannot be read",
    ),
}


@pytest.mark.parametrize("name", sorted(DAMAGE))
def test_check_says_what_is_wrong(name, damaged_root):
    damage, message = DAMAGE[name]
    damage(damaged_root / "training" / "patient001")
    (problems,) = check_patients(damaged_root).values()
    assert len(problems) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(problems[0])


def test_check_of_a_clean_root(phantom_root):
    assert check_patients(phantom_root) == {f"patient{number:03d}": [] for number in range(1, 6)}


def test_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root: got .*nowhere, expected an existing folder"):
        find_patients(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="expected folders patientXXX"):
        find_patients(tmp_path)


def make_patients(tmp_path, count=100):
    return [Patient(tmp_path / f"patient{number:03d}", 1, 2, GROUPS[number // 20]) for number in range(count)]


def test_split_is_by_patient_stratified_and_repeatable(tmp_path):
    patients = make_patients(tmp_path)
    split = split_patients(patients, 0.7, 0.1, 0.2, seed=4)
    ids = [patient.id for part in split for patient in part]
    assert len(ids) == len(set(ids)) == 100
    for part, each in zip(split, (14, 2, 4), strict=True):
        assert Counter(patient.group for patient in part) == dict.fromkeys(GROUPS, each)
    assert split == split_patients(patients[::-1], 0.7, 0.1, 0.2, seed=4)
    assert split != split_patients(patients, 0.7, 0.1, 0.2, seed=5)
    assert [len(part) for part in split_patients(patients, 15, 5, 10)] == [15, 5, 10]
    # Pinned: the split must be the same on every machine.
    assert [patient.id for patient in split_patients(patients, 5, 0, 0).train] == PINNED


PINNED = ["patient027", "patient054", "patient070", "patient008", "patient097"]


@pytest.mark.parametrize("sizes", [(90, 10, 1), (0, 50, 50), (-1, 2, 2), (0.9, 0.1, 0.1)])
def test_split_sizes_that_do_not_fit(tmp_path, sizes):
    with pytest.raises(ValueError, match="train, val, test: got"):
        split_patients(make_patients(tmp_path), *sizes)


def test_split_refuses_a_patient_twice(tmp_path):
    patients = make_patients(tmp_path, 5)
    with pytest.raises(ValueError, match="patient003 more than once"):
        split_patients([*patients, patients[3]], 2, 1, 1)


def test_a_split_fixed_in_a_file(phantom_patients, tmp_path):
    names = [patient.id for patient in phantom_patients]
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": [names[3], names[0]], "val": [], "test": [names[1]]}))
    split = read_split(path, phantom_patients)
    assert [[patient.id for patient in part] for part in split] == [[names[3], names[0]], [], [names[1]]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as a split"),
        ('{"train": ["patient001"], "val": []}', "cannot be read as a split"),
        ('{"train": ["patient001"], "val": ["patient001"], "test": []}', "patient001 more than once"),
        ('{"train": ["patient001"], "val": [], "test": ["patient999"]}', "data does not have .patient999"),
        ('{"train": [], "val": [], "test": ["patient001"]}', "no training patient"),
    ],
)
def test_bad_split_files_are_named(phantom_patients, tmp_path, content, message):
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"split\.json.*{message}"):
        read_split(path, phantom_patients)
    with pytest.raises(FileNotFoundError, match=r"split: got .*other\.json"):
        read_split(tmp_path / "other.json", phantom_patients)


def test_slices(phantom_patients):
    data = SliceDataset(phantom_patients, size=48, crop=96)
    count = sum(read_volume(patient, phase).image.shape[2] for patient in phantom_patients for phase in PHASES)
    assert data.images.shape == (count, 1, 48, 48)
    assert data.labels.shape == (count, 48, 48)
    assert data.volumes[-1].stop == count == len(data)
    assert data.volumes[0].spacing == (10.0, 3.0, 3.0)
    image, label = data[3]
    assert (image.dtype, label.dtype, image.shape, label.shape) == (torch.float32, torch.int64, (1, 48, 48), (48, 48))
    torch.testing.assert_close(data.probs.sum(1), torch.ones(count, 48, 48), atol=1e-5, rtol=0)
    # Image, labels and probabilities went through the same grid: the labels follow their probabilities.
    likely = data.probs.argmax(1)
    assert (likely == data.labels).float().mean() > 0.97


def test_crop_keeps_the_centre_and_pads_with_background(phantom_patients):
    volume = read_volume(phantom_patients[0], "ED")
    data = SliceDataset(phantom_patients[:1], size=200, scaling="none", phases=["ED"])
    nx, ny, _ = volume.image.shape
    x, y = (200 - nx) // 2, (200 - ny) // 2
    np.testing.assert_array_equal(data.images[:, 0, x : x + nx, y : y + ny].numpy(), volume.image.transpose(2, 0, 1))
    assert (data.images[:, 0, :x] == 0).all()
    assert (data.labels[:, :x] == 0).all()
    assert (data.probs[:, 0, :x] == 1).all()


def test_scaling(phantom_patients):
    nx, ny, _ = read_volume(phantom_patients[0], "ED").image.shape
    zscore = SliceDataset(phantom_patients[:1], size=min(nx, ny), phases=["ED"]).images
    assert abs(zscore.mean()) < 0.3
    assert 0.7 < zscore.std() < 1.3
    percentile = SliceDataset(phantom_patients[:1], size=64, scaling="percentile").images
    assert percentile.min() >= 0
    assert percentile.max() <= 1


def test_resampling_to_a_voxel_size(phantom_patients):
    fine = SliceDataset(phantom_patients[:1], size=200, phases=["ED"])
    coarse = SliceDataset(phantom_patients[:1], size=100, spacing=3.0, phases=["ED"])
    assert coarse.volumes[0].spacing == (10.0, 3.0, 3.0)
    ratio = (fine.labels > 0).sum() / (coarse.labels > 0).sum()
    assert ratio.item() == pytest.approx(4, rel=0.05)


def test_augmentation_moves_image_and_labels_together_and_repeats(phantom_patients):
    transform = augmentation(1.0)
    data = SliceDataset(phantom_patients[:1], size=96, transform=transform)
    transform.set_random_state(seed=1)
    image, label = data[4]
    transform.set_random_state(seed=1)
    again, label_again = data[4]
    assert torch.equal(image, again)
    assert torch.equal(label, label_again)
    assert not torch.equal(label, data.labels[4].long())
    assert set(label.unique().tolist()) <= {0, 1, 2, 3}


def test_fingerprint_follows_the_content_not_the_compression(phantom_patients, damaged_root):
    (copy,) = find_patients(damaged_root)
    before = fingerprint(phantom_patients[:1])
    assert fingerprint([copy]) == before
    relabel(copy.folder, lambda labels: set_first(labels, 1))
    assert fingerprint([copy]) != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size, crop: got 0"),
        ({"scaling": "minmax"}, "scaling: got 'minmax'"),
        ({"spacing": -1.0}, "spacing: got -1"),
        ({"phases": ["systole"]}, "phase: got 'systole'"),
    ],
)
def test_bad_options(phantom_patients, options, message):
    with pytest.raises(ValueError, match=message):
        SliceDataset(phantom_patients[:1], **{"size": 32, **options})
    with pytest.raises(ValueError, match="patients: got none"):
        SliceDataset([])
    with pytest.raises(ValueError, match="probability: got 2"):
        augmentation(2)


@pytest.mark.acdc
def test_all_real_volumes_are_clean(acdc_root):
    report = check_patients(acdc_root)
    assert len(report) == 80
    assert {patient: problems for patient, problems in report.items() if problems} == {}
    patients = find_patients(acdc_root)
    assert Counter(patient.group for patient in patients) == dict.fromkeys(GROUPS, 16)
    assert read_volume(patients[0], "ED").spacing is None  # the copy lost it, and says so
