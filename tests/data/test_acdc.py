"""Reading the ACDC layout: a small phantom, damaged copies of it, and the real volumes."""

import shutil
from collections import Counter

import nibabel as nib
import numpy as np
import pytest

from mbls.data.acdc import CLASS_NAMES, GROUPS, find_patients
from mbls.data.layout import check_dataset, read_dataset
from mbls.data.slices import SliceDataset


@pytest.fixture
def damaged_root(phantom_root, tmp_path):
    """A copy of one patient, to be broken."""
    shutil.copytree(phantom_root / "training" / "patient001", tmp_path / "training" / "patient001")
    return tmp_path


def test_info_with_and_without_a_group(phantom_root, tmp_path):
    patient = find_patients(phantom_root)[0]
    assert (patient.id, patient.ed_frame, patient.es_frame, patient.group) == ("patient001", 1, 11, "NOR")
    folder = tmp_path / "patient007"
    folder.mkdir()
    (folder / "Info.cfg").write_text("ED: 1\nES: 12\n")
    (bare,) = find_patients(tmp_path)
    assert (bare.es_frame, bare.group) == (12, None)


def test_the_data_set_describes_itself(phantom):
    assert (phantom.name, phantom.class_names, phantom.num_classes) == ("phantom", CLASS_NAMES, 4)
    assert [case.id for case in phantom.cases[:3]] == ["patient001_ED", "patient001_ES", "patient002_ED"]
    assert phantom.subjects == {f"patient00{number + 1}": group for number, group in enumerate(GROUPS)}


def test_a_case_is_read_at_each_access_and_not_kept(phantom):
    case = phantom.cases[0]
    assert case.labels is not case.labels
    volume = case.read()
    assert volume.image.shape == (1, *volume.labels.shape)
    assert volume.truth.shape == (4, *volume.labels.shape)
    np.testing.assert_array_equal(case.image, volume.image)
    assert (case.spacing, case.truth.dtype) == (volume.spacing, np.float32)
    assert volume.image.dtype == np.float32
    assert volume.spacing == (1.5, 1.5, 10.0)
    assert set(np.unique(volume.labels)) == {0, 1, 2, 3}


def test_spacing_is_unknown_without_unit_and_size(damaged_root):
    path = damaged_root / "training" / "patient001" / "patient001_frame01.nii.gz"
    data = np.asarray(nib.load(path).dataobj)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    relabel(damaged_root / "training" / "patient001", lambda labels: labels, affine=np.eye(4))
    dataset = read_dataset(damaged_root)
    assert dataset.cases[0].spacing is None
    with pytest.raises(ValueError, match="do not know their voxel size"):
        SliceDataset(dataset, size=32, spacing=1.5)


def overwrite(name, change):
    """A way to damage a copy: rewrite one of its files from its bytes."""

    def damage(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def relabel(folder, change, name="patient001_frame01_gt.nii.gz", affine=None):
    image = nib.load(folder / name)
    affine = image.affine if affine is None else affine
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), affine), folder / name)


def set_first(labels, value):
    labels = labels.copy()
    labels[0, 0, 0] = value
    return labels


def poison(folder):
    path = folder / "patient001_frame01.nii.gz"
    image = np.asarray(nib.load(path).dataobj).astype(np.float32)
    nib.save(nib.Nifti1Image(set_first(image, np.nan), nib.load(path).affine), path)


def moved(by):
    affine = np.diag([1.5, 1.5, 10.0, 1.0])
    affine[0, 3] = by
    return affine


MIRRORED = np.diag([-1.5, 1.5, 10.0, 1.0])


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
    "labels shifted by a millimetre": (
        lambda folder: relabel(folder, lambda labels: labels, affine=moved(1.0)),
        "lies on another grid than patient001_frame01.nii.gz: the affines differ by up to 1",
    ),
    "labels mirrored": (
        lambda folder: relabel(folder, lambda labels: labels[::-1], affine=MIRRORED),
        "lies on another grid",
    ),
    "affine of NaN": (
        lambda folder: relabel(folder, lambda labels: labels, affine=moved(np.nan)),
        "affine that is not finite",
    ),
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
    (problems,) = check_dataset(damaged_root).values()
    assert len(problems) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(problems[0])


def test_check_of_a_clean_root(phantom_root):
    assert check_dataset(phantom_root) == {f"patient{number:03d}": [] for number in range(1, 6)}


def test_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root: got .*nowhere, expected an existing folder"):
        find_patients(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="expected folders patientXXX"):
        find_patients(tmp_path)


def test_a_grid_may_be_off_by_rounding(damaged_root):
    folder = damaged_root / "training" / "patient001"
    relabel(folder, lambda labels: labels, affine=moved(5e-4))
    assert check_dataset(damaged_root) == {"patient001": []}


@pytest.mark.acdc
def test_all_real_volumes_are_clean(acdc_root):
    report = check_dataset(acdc_root)
    assert len(report) == 80
    assert {patient: problems for patient, problems in report.items() if problems} == {}
    acdc = read_dataset(acdc_root)
    assert acdc.name == "ACDC"
    assert Counter(acdc.subjects.values()) == dict.fromkeys(GROUPS, 16)
    assert acdc.cases[0].spacing is None  # the copy lost it, and says so
