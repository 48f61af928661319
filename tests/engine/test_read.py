"""Predictions of other programs: every form is read as what it is, matched with its labels, or refused by name."""

import json
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch

from mbls.engine.read import FLOOR, read_predictions

NAMES = ("background", "RV", "MYO", "LV")
SHAPE = (9, 8, 5)  # x, y, z, as in a NIfTI file
AFFINE = np.diag([1.5, 1.25, 8.0, 1.0])


def make_case(seed=0, shape=SHAPE):
    """Labels (x, y, z) and probabilities (K, x, y, z)."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, len(NAMES), shape).astype(np.uint8)
    probs = torch.from_numpy(draw.normal(size=(len(NAMES), *shape))).softmax(0).numpy().astype(np.float32)
    return labels, probs


def save_nifti(path, array, affine=AFFINE, unit="mm"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)


def describe(folder, **more):
    labels = {name: label for label, name in enumerate(NAMES)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}, "labels": labels, **more}))


def save_nnunet(folder, case, labels, probs, affine=AFFINE):
    """As nnunetv2/inference/export_prediction.py does: the array in SimpleITK's order, a segmentation beside it."""
    describe(folder)
    np.savez_compressed(folder / f"{case}.npz", probabilities=probs.transpose(0, *range(probs.ndim - 1, 0, -1)))
    save_nifti(folder / f"{case}.nii.gz", probs.argmax(0).astype(np.uint8), affine)
    (folder / f"{case}.pkl").write_bytes(b"its properties")
    (folder / "plans.json").write_text(json.dumps({"image_reader_writer": "SimpleITKIO"}))


def expect(prediction, labels, probs):
    assert torch.equal(prediction.labels, torch.from_numpy(labels.T.astype(np.int64)))
    expected = torch.from_numpy(np.ascontiguousarray(probs.transpose(0, 3, 2, 1)))
    torch.testing.assert_close(prediction.logits.softmax(0), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def nnunet(tmp_path):
    """Two cases as nnU-Net has them."""
    for seed, case in enumerate(("ACDC_001", "ACDC_002")):
        labels, probs = make_case(seed)
        save_nifti(tmp_path / "labelsTs" / f"{case}.nii.gz", labels)
        save_nnunet(tmp_path / "predicted", case, labels, probs)
    return tmp_path


def test_nnunet_with_its_classes_and_the_order_of_its_axes(nnunet):
    found = read_predictions(nnunet / "predicted", nnunet / "labelsTs")
    assert found.class_names == NAMES
    assert (found.cases, found.unmatched, len(found)) == (("ACDC_001", "ACDC_002"), (), 2)
    for seed, prediction in enumerate(found):
        expect(prediction, *make_case(seed))
        assert prediction.spacing == (8.0, 1.25, 1.5)
        assert (prediction.subject, prediction.floored) == (prediction.id, 0)
    assert [path.name for path in found.files("ACDC_001")] == ["ACDC_001.npz", "ACDC_001.nii.gz"]


def test_nnunet_2d(tmp_path):
    labels, probs = make_case(shape=(9, 8, 1))
    save_nifti(tmp_path / "labels" / "a.nii.gz", labels[..., 0])
    save_nnunet(tmp_path / "predicted", "a", labels, probs)
    (prediction,) = read_predictions(tmp_path / "predicted", tmp_path / "labels")
    expect(prediction, labels, probs)
    assert prediction.spacing == (1.0, 1.25, 1.5)


def test_nnunet_that_turned_its_images_to_ras(tmp_path):
    """Its arrays stay turned, its segmentation is turned back."""
    labels, probs = make_case()
    affine = np.diag([-1.5, -1.25, 8.0, 1.0])
    save_nifti(tmp_path / "labels" / "a.nii.gz", labels, affine)
    save_nnunet(tmp_path / "predicted", "a", labels[::-1, ::-1], probs[:, ::-1, ::-1], affine)
    (tmp_path / "predicted" / "plans.json").write_text('{"image_reader_writer": "NibabelIOWithReorient"}')
    (prediction,) = read_predictions(tmp_path / "predicted", tmp_path / "labels")
    expect(prediction, labels[::-1, ::-1], probs[:, ::-1, ::-1])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("options", [{}, {"separate_folder": False, "output_postfix": ""}])
def test_monai_save_image(tmp_path, dims, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MONAI's imports
        from monai.data import MetaTensor
        from monai.transforms import SaveImage

        labels, probs = make_case(shape=SHAPE if dims == 3 else (9, 8, 1))
        save_nifti(tmp_path / "labels" / "heart_7.nii.gz", labels[..., 0] if dims == 2 else labels)
        stored = probs[..., 0] if dims == 2 else probs
        meta = {"filename_or_obj": "images/heart_7_0000.nii.gz"}
        writer = SaveImage(output_dir=tmp_path / "out", print_log=False, **options)
        writer(MetaTensor(torch.from_numpy(stored), affine=torch.from_numpy(AFFINE), meta=meta))
    found = read_predictions(tmp_path / "out", tmp_path / "labels", classes=NAMES)
    assert found.cases == ("heart_7",)
    expect(*found, labels, probs)


@pytest.mark.parametrize(
    ("order", "ending"),
    [((1, 2, 3, 0), ".nii.gz"), ((0, 1, 2, 3), ".nii"), ((0, 1, 2, 3), ".npy"), ((3, 2, 1, 0), ".npy")],
    ids=["nifti, classes last", "nifti, classes first", "npy (K, x, y, z)", "npy (z, y, x, K)"],
)
def test_other_orders_are_told_by_the_labels_shape(tmp_path, order, ending):
    labels, probs = make_case()
    save_nifti(tmp_path / "labels" / "a.nii.gz", labels)
    (tmp_path / "out").mkdir()
    array = probs.transpose(order)
    if ending == ".npy":
        np.save(tmp_path / "out" / "a.npy", array)
    else:
        save_nifti(tmp_path / "out" / f"a{ending}", array)
    found = read_predictions(tmp_path / "out", tmp_path / "labels")
    assert found.class_names == ("background", "class 1", "class 2", "class 3")
    expect(*found, labels, probs)


@pytest.mark.parametrize("classes_last", [False, True])
def test_arrays_with_arrays_as_labels(tmp_path, classes_last):
    labels, probs = make_case()
    for name in ("labels", "out"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "labels" / "a.npy", labels.T.astype(np.float32))  # whole-numbered floats are labels too
    array = probs.transpose(0, 3, 2, 1)
    np.savez(tmp_path / "out" / "a.npz", anything=np.moveaxis(array, 0, -1) if classes_last else array)
    (prediction,) = read_predictions(tmp_path / "out", tmp_path / "labels")
    expect(prediction, labels, probs)
    assert prediction.spacing is None


def test_a_cube_of_as_many_voxels_as_classes_is_ambiguous(tmp_path):
    labels, probs = make_case(shape=(4, 4, 4))
    save_nifti(tmp_path / "labels" / "a.nii.gz", labels)
    save_nifti(tmp_path / "out" / "a.nii.gz", probs)
    with pytest.raises(ValueError, match=r"a\.nii\.gz: got shape \(4, 4, 4, 4\), of which several axes may be"):
        list(read_predictions(tmp_path / "out", tmp_path / "labels", classes=NAMES))


def test_logits_and_log_probabilities(nnunet):
    labels, probs = make_case()
    path = nnunet / "predicted" / "ACDC_001.npz"
    for logits in (np.log(probs), 3 * np.log(probs) + 5):
        np.savez_compressed(path, probabilities=logits.transpose(0, 3, 2, 1))
        prediction = read_predictions(nnunet / "predicted", nnunet / "labelsTs", logits=True).read("ACDC_001")
        expected = torch.from_numpy(logits).softmax(0).numpy()
        expect(prediction, labels, expected)


def test_zeros_are_raised_and_counted(nnunet):
    """Outside its crop nnU-Net writes 1 for the background and 0 for all else."""
    labels, probs = make_case()
    probs[:, :2] = np.array([1, 0, 0, 0]).reshape(4, 1, 1, 1)
    save_nnunet(nnunet / "predicted", "ACDC_001", labels, probs)
    prediction = read_predictions(nnunet / "predicted", nnunet / "labelsTs").read("ACDC_001")
    assert prediction.floored == 3 * 2 * 8 * 5
    assert float(prediction.logits.min()) == pytest.approx(np.log(FLOOR))


def test_subjects_and_ignored_voxels(nnunet):
    labels, _ = make_case()
    labels[0] = 4
    save_nifti(nnunet / "labelsTs" / "ACDC_001.nii.gz", labels)
    describe(nnunet / "predicted", labels={**{name: label for label, name in enumerate(NAMES)}, "ignore": 4})
    found = read_predictions(nnunet / "predicted", nnunet / "labelsTs", subject=r"(\w+)_\d+")
    first = found.read("ACDC_001")
    assert first.subject == "ACDC"
    assert int((first.labels == -100).sum()) == 8 * 5
    with pytest.raises(ValueError, match=r"subject: got 'nobody', which finds nothing in the case 'ACDC_001'"):
        read_predictions(nnunet / "predicted", nnunet / "labelsTs", subject="nobody")


def test_acdcs_own_folders_are_labels(tmp_path):
    labels, probs = make_case()
    save_nifti(tmp_path / "training" / "patient001" / "patient001_frame01_gt.nii.gz", labels)
    save_nifti(tmp_path / "training" / "patient001" / "patient001_frame01.nii.gz", labels * 100.0)
    save_nnunet(tmp_path / "predicted", "patient001_frame01", labels, probs)
    found = read_predictions(tmp_path / "predicted", tmp_path / "training")
    assert found.cases == ("patient001_frame01",)
    expect(*found, labels, probs)


def test_what_has_no_partner_is_listed(nnunet):
    labels, probs = make_case()
    save_nnunet(nnunet / "predicted", "ACDC_003", labels, probs)
    (nnunet / "predicted" / "ACDC_002.npz").unlink()
    (nnunet / "predicted" / "ACDC_002.nii.gz").unlink()
    found = read_predictions(nnunet / "predicted", nnunet / "labelsTs")
    assert found.cases == ("ACDC_001",)
    first, second = found.unmatched
    assert "ACDC_003.npz: got no labels ACDC_003 in" in first
    assert "ACDC_002.nii.gz: got no prediction in" in second
    (nnunet / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"got no case that is in .* too \(ACDC_001, ACDC_003 against nothing"):
        read_predictions(nnunet / "predicted", nnunet / "empty")


def _overwrite(folder, case, array, name="probabilities"):
    np.savez_compressed(folder / f"{case}.npz", **{name: array})


def _probs():
    return np.ascontiguousarray(make_case()[1].transpose(0, 3, 2, 1))


BROKEN = {
    "logits as probabilities": (lambda: _probs() * 9 - 3, r"got values -.*, logits; expected probabilities .*--logits"),
    "log-probabilities as probabilities": (lambda: np.log(_probs()), r"got values .*, log-probabilities; expected"),
    "sums off one": (lambda: _probs() * 0.9, r"got sums off 1 by up to 0\.1 at 360 voxels"),
    "overlapping regions": (lambda: 1 - _probs(), r"got sums off 1 by up to 2 at 360 voxels"),
    "NaN": (lambda: np.where(_probs() > 0.5, np.nan, _probs()), r"got NaN or infinite numbers"),
    "whole numbers": (lambda: (255 * _probs()).astype(np.uint8), r"got uint8, expected floating point"),
    "no classes": (lambda: _probs()[0], r"got shape \(5, 8, 9\), one number a voxel .*expected 4 classes"),
    "too few classes": (lambda: _probs()[:3], r"got shape \(3, 5, 8, 9\), expected 4 classes \(background, RV, MYO"),
    "another shape": (lambda: _probs()[:, 1:], r"got shape \(4, 4, 8, 9\), expected .* \(5, 8, 9\) voxels"),
    "axes of NIfTI": (lambda: make_case()[1], r"got shape \(4, 9, 8, 5\), expected .* and \(5, 8, 9\) voxels"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_wrong_arrays_are_refused_by_name(nnunet, kind):
    make, message = BROKEN[kind]
    _overwrite(nnunet / "predicted", "ACDC_001", make())
    found = read_predictions(nnunet / "predicted", nnunet / "labelsTs")
    with pytest.raises(ValueError, match=rf"ACDC_001\.npz: {message}"):
        found.read("ACDC_001")
    expect(found.read("ACDC_002"), *make_case(1))


def test_other_wrong_files_are_refused_by_name(nnunet):
    folder, answers = nnunet / "predicted", nnunet / "labelsTs"

    def refused(message, **options):
        with pytest.raises(ValueError, match=message):
            read_predictions(folder, answers, **options).read("ACDC_001")

    refused(r"ACDC_001\.npz: got values .* that sum to 1, probabilities; expected logits", logits=True)
    _overwrite(folder, "ACDC_001", _probs(), "softmax")
    refused(r"ACDC_001\.npz: got softmax, as nnU-Net version 1 .* expected version 2's probabilities")
    (folder / "ACDC_001.npz").write_bytes((folder / "ACDC_001.npz").read_bytes()[:200])
    refused(r"ACDC_001\.npz: cannot be read as npz")
    labels, probs = make_case()
    save_nnunet(folder, "ACDC_001", labels, probs)
    save_nifti(answers / "ACDC_001.nii.gz", labels + 1)
    refused(r"ACDC_001\.nii\.gz: got label 4 \(\d+ voxels\), expected 0\.\.3")
    save_nifti(answers / "ACDC_001.nii.gz", labels, np.diag([-1.5, 1.25, 8.0, 1.0]))
    refused(r"predicted.ACDC_001\.nii\.gz: lies on another grid than ACDC_001")
    save_nifti(answers / "ACDC_001.nii", labels)
    refused(r"got the labels of ACDC_001 a second time")
    (answers / "ACDC_001.nii").unlink()
    np.save(folder / "ACDC_001.npy", probs)
    refused(r"ACDC_001\.npy: got a second prediction of ACDC_001|got a second prediction of ACDC_001 beside")
    refused(r"classes: got a, a, expected two or more distinct names", classes=["a", "a"])


def test_regions_of_nnunet_are_refused(nnunet):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3]}
    (nnunet / "predicted" / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(ValueError, match=r"dataset\.json: got the region 'whole' of labels \[1, 2, 3\]"):
        read_predictions(nnunet / "predicted", nnunet / "labelsTs")


@pytest.mark.parametrize(
    ("ending", "order"),
    [
        (".npz", (0, 3, 2, 1)),
        (".nii.gz", (1, 2, 3, 0)),
        (".nii.gz", (0, 1, 2, 3)),
        (".npy", (0, 3, 2, 1)),
        (".npy", (0, 1, 2, 3)),
    ],
)
def test_probabilities_are_written_in_the_form_that_came_in(tmp_path, ending, order):
    labels, probs = make_case()
    if (ending == ".npz" and order != (0, 3, 2, 1)) or (ending == ".nii.gz" and order == (0, 3, 2, 1)):
        pytest.skip("not an order of this form")
    save_nifti(tmp_path / "labels" / "a.nii.gz", labels)
    source = tmp_path / "out" / "deep"
    source.mkdir(parents=True)
    if ending == ".npz":
        np.savez_compressed(source / "a.npz", probabilities=probs.transpose(order))
    elif ending == ".npy":
        np.save(source / "a.npy", probs.transpose(order))
    else:
        save_nifti(source / f"a{ending}", probs.transpose(order))
    found = read_predictions(tmp_path / "out", tmp_path / "labels")
    other = torch.from_numpy(np.ascontiguousarray(probs[::-1].transpose(0, 3, 2, 1)))
    path = found.write("a", other, tmp_path / "written")
    assert path == tmp_path / "written" / "deep" / f"a{ending}"
    (again,) = read_predictions(tmp_path / "written", tmp_path / "labels")
    torch.testing.assert_close(again.logits.softmax(0), other, rtol=1e-5, atol=1e-6)
    if ending == ".nii.gz":
        assert nib.load(path).shape == nib.load(source / f"a{ending}").shape
