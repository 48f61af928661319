"""The layout of nnU-Net and MSD: both dialects, 2-D and 3-D, channels, an ignore label; what is refused says so."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from mbls.__main__ import main
from mbls.data.layout import check_dataset, read_dataset
from mbls.data.slices import IGNORED, SliceDataset
from mbls.losses import MbLSLoss

NNUNET = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "organ": 1, "tumour": 2}, "file_ending": ".nii.gz"}
MSD = {"name": "Abdomen", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "organ", "2": "tumour"}}


def make_array(seed, shape):
    """An image, and labels of which each class has some."""
    random = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    labels[4:20, 4:20] = 1
    labels[8:14, 8:14] = 2
    return (100 * labels + random.normal(0, 20, shape)).astype(np.float32), labels


def write(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def make_root(root, description, cases=("a", "b", "c"), shape=(32, 40, 3), suffix="_0000", ending=".nii.gz"):
    for number, case in enumerate(cases):
        image, labels = make_array(number, shape)
        write(root / "imagesTr" / f"{case}{suffix}{ending}", image)
        write(root / "labelsTr" / f"{case}{ending}", labels)
    (root / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("suffix", ["_0000", ""])
@pytest.mark.parametrize(("description", "name"), [(NNUNET, "Dataset001_Belly"), (MSD, "Abdomen")])
def test_both_dialects_with_and_without_suffix(tmp_path, description, name, suffix, ending):
    root = make_root(
        tmp_path / "Dataset001_Belly", {**description, "file_ending": ending}, suffix=suffix, ending=ending
    )
    dataset = read_dataset(root)
    assert (dataset.name, dataset.class_names) == (name, ("background", "organ", "tumour"))
    assert [case.id for case in dataset.cases] == list(dataset.subjects) == ["a", "b", "c"]
    volume = dataset.cases[1].read()
    image, labels = make_array(1, (32, 40, 3))
    np.testing.assert_array_equal(volume.image, image[None])
    np.testing.assert_array_equal(volume.labels, labels)
    assert (volume.spacing, volume.truth) == ((1.0, 2.0, 3.0), None)
    assert check_dataset(root) == {"a": [], "b": [], "c": []}


def test_slices_take_classes_and_name_from_the_data(tmp_path):
    data = SliceDataset(read_dataset(make_root(tmp_path, MSD)), size=32)
    assert (data.name, data.num_classes, data.num_channels) == ("Abdomen", 3, 1)
    assert data.images.shape == (9, 1, 32, 32)
    assert data.volumes[0].spacing == (3.0, 1.0, 2.0)


def test_images_of_two_dimensions_are_a_slice_each(tmp_path):
    data = SliceDataset(read_dataset(make_root(tmp_path, NNUNET, shape=(32, 40))), size=32)
    assert data.images.shape == (3, 1, 32, 32)
    assert [volume.stop for volume in data.volumes] == [1, 2, 3]
    assert data.volumes[0].spacing == (1.0, 1.0, 2.0)


def test_channels_stack_from_files_or_from_the_last_axis(tmp_path):
    channels = {"0": "T1", "1": "T2"}
    files = make_root(tmp_path / "files", {**NNUNET, "channel_names": channels})
    whole = make_root(tmp_path / "whole", {**MSD, "modality": channels})
    for number, case in enumerate("abc"):
        image, _ = make_array(number, (32, 40, 3))
        write(files / "imagesTr" / f"{case}_0001.nii.gz", 2 * image)
        (whole / "imagesTr" / f"{case}_0000.nii.gz").unlink()
        write(whole / "imagesTr" / f"{case}.nii.gz", np.stack([image, 2 * image], axis=-1))
    for root in (files, whole):
        dataset = read_dataset(root)
        assert dataset.channel_names == ("T1", "T2")
        image = dataset.cases[0].image
        assert image.shape == (2, 32, 40, 3)
        np.testing.assert_array_equal(image[1], 2 * image[0])
        assert SliceDataset(dataset, size=16, crop=32).num_channels == 2
    (files / "imagesTr" / "b_0001.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"b_0000\.nii\.gz: got one file of shape .* for this case, expected 2 files"):
        read_dataset(files).cases[1].read()


def test_ignored_voxels_reach_the_losses_as_theirs(tmp_path):
    root = make_root(tmp_path, {**NNUNET, "labels": {**NNUNET["labels"], "ignore": 3}})
    _, labels = make_array(0, (32, 40, 3))
    labels[:, :10] = 3
    write(root / "labelsTr" / "a.nii.gz", labels)
    dataset = read_dataset(root)
    assert (dataset.class_names, dataset.ignore_label) == (("background", "organ", "tumour"), 3)
    data = SliceDataset(dataset, size=32)
    assert set(data.labels.unique().tolist()) == {IGNORED, 0, 1, 2}
    _, target = data[0]
    loss = MbLSLoss(5, reduction="none")(torch.randn(1, 3, 32, 32), target.unsqueeze(0))
    assert ((loss == 0) == (target == IGNORED)).all()


def test_subjects_are_found_by_a_regular_expression(tmp_path):
    root = make_root(tmp_path, NNUNET, cases=("p1_v1", "p10_v1", "p1_v2", "p2_v1"))
    dataset = read_dataset(root, subject=r"(p\d+)_")
    assert [(case.subject, case.id) for case in dataset.cases] == [
        ("p1", "p1_v1"),
        ("p1", "p1_v2"),
        ("p10", "p10_v1"),
        ("p2", "p2_v1"),
    ]
    assert list(read_dataset(root, subject="p.").subjects) == ["p1", "p2"]
    with pytest.raises(ValueError, match=r"subject: got 'x\+', which finds nothing in the case 'p10_v1'"):
        read_dataset(root, subject="x+")
    with pytest.raises(ValueError, match="subject: got '\\(', expected a regular expression"):
        read_dataset(root, subject="(")


def test_the_acdc_layout_knows_its_patients(phantom_root):
    with pytest.raises(ValueError, match="subject: got 'p', expected None"):
        read_dataset(phantom_root, subject="p")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"background": 0, "whole": [1, 2]}}, r"got the region 'whole' of labels \[1, 2\]"),
        ({"file_ending": ".png"}, r"got \"file_ending\": '.png', expected one of .nii.gz, .nii"),
        ({"labels": {"background": 0, "organ": 2}}, r"got the labels \[0, 2\], expected 0"),
        ({"labels": {"organ": 1, "tumour": 2}}, r"got the labels \[1, 2\], expected 0"),
        ({"labels": {"background": 0, "organ": 1.5}}, "got the label 'organ': 1.5"),
        ({"labels": {"background": 0, "organ": True}}, "got the label 'organ': True"),
        ({"labels": {"background": 0, "organ": 1, "other": 1}}, "got the label 1 twice"),
        ({"labels": {"background": 0, "organ": 1, "ignore": 1}}, "got the label 1 twice"),
        ({"labels": ["background", "organ"]}, 'got no "labels" in it'),
        ({"channel_names": {}}, 'got no "channel_names" or "modality"'),
        ({"channel_names": {"1": "T1"}}, "got the channels 1, expected 0, 1"),
    ],
)
def test_descriptions_that_are_refused(tmp_path, change, message):
    root = make_root(tmp_path, {**NNUNET, **change}, cases=("a",))
    with pytest.raises(ValueError, match=rf"dataset\.json: {message}"):
        read_dataset(root)


def test_damaged_descriptions_and_missing_files(tmp_path):
    root = make_root(tmp_path / "root", NNUNET)
    (root / "labelsTr" / "c.nii.gz").unlink()
    (root / "imagesTr" / "b_0000.nii.gz").unlink()
    (root / "imagesTr" / "._a_0000.nii.gz").write_bytes(b"left by a Mac")
    report = check_dataset(root)
    assert {name: len(problems) for name, problems in report.items()} == {"a": 0, "b": 1, "c_0000": 1}
    assert "expected the labels of c" in report["c_0000"][0]
    with pytest.raises(FileNotFoundError, match=r"expected b\.nii\.gz or b_0000\.nii\.gz"):
        read_dataset(root)
    (root / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json: cannot be read as JSON"):
        read_dataset(root)
    pictures = tmp_path / "pictures"
    (pictures / "labelsTr").mkdir(parents=True)
    (pictures / "dataset.json").write_text(json.dumps({key: NNUNET[key] for key in ("channel_names", "labels")}))
    (pictures / "labelsTr" / "a.png").write_bytes(b"a picture")
    with pytest.raises(ValueError, match=r"got files such as a\.png, expected \.nii\.gz or \.nii"):
        read_dataset(pictures)


@pytest.mark.parametrize(
    ("labels", "affine", "message"),
    [
        (np.zeros((32, 40, 4), np.uint8), None, r"got shape \(32, 40, 4\), expected \(32, 40, 3\)"),
        (np.full((32, 40, 3), 7, np.uint8), None, r"got label 7 \(3840 voxels\), expected 0..2"),
        (np.full((32, 40, 3), 0.5, np.float32), None, "got label 0.5"),
        (np.full((32, 40, 3), 1.0000001, np.float32), None, r"got label 1.0000001\d* \(3840 voxels\)"),
        (np.zeros((32, 40, 3), np.uint8), np.diag([-1.0, 2, 3, 1]), "lies on another grid than a_0000.nii.gz"),
    ],
)
def test_labels_that_do_not_fit_their_image(tmp_path, capsys, labels, affine, message):
    root = make_root(tmp_path, NNUNET, cases=("a", "b"))
    write(root / "labelsTr" / "a.nii.gz", labels, affine)
    with pytest.raises(ValueError, match=message):
        read_dataset(root).cases[0].read()
    assert main(["check", str(root)]) == 1  # and the other case is read all the same
    assert "b  clean" in capsys.readouterr().out
