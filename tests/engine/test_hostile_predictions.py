"""Folders of predictions that lie: every file of `mbls judge` is refused in our words, and nothing is run or written
elsewhere."""

import functools
import gzip
import io
import json
import os
import pickle
import re
import resource
import struct
import time
import warnings
import zipfile

import nibabel as nib
import numpy as np
import pytest
from fuzzing import Target, fuzz

from mbls.engine.predict import INDEX, keep, write_index
from mbls.engine.read import read_predictions
from mbls.files import MAX_BYTES
from mbls.report import judge_folder, merge_judged, read_judged, write_report
from mbls.report.run import INDEX as JUDGED

NAMES = ("background", "a", "b")
SHAPE = (2, 6, 5)  # z, y, x


class Planted:
    """A pickle that would make a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(content, name="probabilities"):
    """An .npz file, sound but for the content of its array."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def nifti(array):
    """Axes (z, y, x), further ones last."""
    image = nib.Nifti1Image(np.moveaxis(array, (0, 1, 2), (2, 1, 0)), np.diag([1.5, 1.5, 8.0, 1.0]))
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


pack = functools.partial(gzip.compress, compresslevel=1)
LABELS = np.random.default_rng(0).integers(0, 3, SHAPE)
PROBS = (0.1 + 0.7 * np.eye(3)[LABELS]).astype(np.float32)  # classes last
FIRST = np.ascontiguousarray(np.moveaxis(PROBS, -1, 0))


@pytest.fixture
def folders(tmp_path):
    """Predictions and labels: a as nnU-Net writes them, b as arrays, c as NIfTI files."""
    predictions, labels = tmp_path / "predictions", tmp_path / "labels"
    for folder, files in {
        predictions: {
            "dataset.json": json.dumps({"name": "n", "labels": {name: k for k, name in enumerate(NAMES)}}).encode(),
            "plans.json": json.dumps({"image_reader_writer": "NibabelIOWithReorient"}).encode(),
            "a.npz": npz(npy(FIRST)),
            "a.nii.gz": pack(nifti(LABELS.astype(np.uint8))),
            "a.pkl": pickle.dumps(Planted(tmp_path / "planted")),
            "b.npy": npy(FIRST),
            "c.nii": nifti(PROBS),
        },
        labels: {
            "a.nii.gz": pack(nifti(LABELS.astype(np.uint8))),
            "b.npy": npy(LABELS.astype(np.uint8)),
            "c.nii": nifti(LABELS.astype(np.int16)),
        },
    }.items():
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return predictions, labels


def read_and_write(predictions, labels, case, written):
    found = read_predictions(predictions, labels)
    found.write(case, found.read(case).logits.softmax(0), written)


def targets(predictions, labels):
    """Each file of both folders, of one that training kept and of one that was judged."""
    root = predictions.parent
    packed = {".gz": (gzip.decompress, pack), ".npz": (lambda _: npy(FIRST), npz)}
    found = []
    for path in [*predictions.iterdir(), *labels.iterdir()]:
        case = "a" if path.suffix == ".json" else path.name[0]
        read = functools.partial(read_and_write, predictions, labels, case, root / "written")
        content = path.read_bytes()
        found.append(Target(path, content, read))
        if path.suffix in packed:
            unpack, wrap = packed[path.suffix]
            found.append(Target(path, unpack(content), read, wrap))
    for _ in keep(read_predictions(predictions, labels), root / "kept"):
        pass
    write_index(root / "kept", "n", NAMES, ("a", "b"))
    judge_folder(predictions, labels, root / "judged")
    for name in (INDEX, "a.npz"):
        path = root / "kept" / name
        found.append(Target(path, path.read_bytes(), lambda: next(iter(read_predictions(root / "kept")), None)))
    for name in (JUDGED, "judged_cases/a.npz"):
        path = root / "judged" / name
        found.append(Target(path, path.read_bytes(), lambda: next(iter(read_judged(root / "judged")), None)))
    return found


@pytest.mark.filterwarnings("ignore")  # a mutated header may make nibabel and numpy warn of anything
def test_a_thousand_mutated_files(folders, tmp_path):
    assert fuzz(tmp_path, targets(*folders), times=1000, seed=0) > 500


@pytest.mark.slow  # a hundred thousand files, some minutes
@pytest.mark.filterwarnings("ignore")
def test_a_hundred_thousand_mutated_files(folders, tmp_path):
    assert fuzz(tmp_path, targets(*folders), times=100_000, seed=1) > 50_000


def test_the_files_that_the_lies_are_made_from_are_judged(folders, tmp_path):
    judged = judge_folder(*folders, tmp_path / "out")
    assert (judged.cases, judged.problems) == (("a", "b", "c"), ())


def objects(planted):
    return np.array([Planted(planted)], dtype=object)


PICKLES = {
    "a.npz": lambda planted: npz(npy(objects(planted))),
    "b.npy": lambda planted: npy(objects(planted)),
    "b.npy, a bare pickle": lambda planted: pickle.dumps(Planted(planted)),
    "a.npz, a bare pickle": lambda planted: npz(pickle.dumps(Planted(planted))),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_is_not_run(name, folders, tmp_path):
    """Nor is the .pkl that nnU-Net puts beside its arrays."""
    file, planted = name.split(",")[0], tmp_path / "planted"
    (folders[0] / file).write_bytes(PICKLES[name](planted))
    judged = judge_folder(*folders, tmp_path / "out")
    ((case, problem),) = judged.problems
    assert case == file[0]
    assert f"{file}: cannot be read as np" in problem
    assert not planted.exists()


def test_bombs_are_not_unpacked(folders, tmp_path):
    """A small file that holds gigabytes, or says so: in an .npz, an .npy and behind gzip."""
    predictions, labels = folders
    large = bytearray(npz(npy(FIRST)))
    place = large.rfind(b"PK\x01\x02")  # the directory's entry; its unpacked size stands 24 bytes on
    large[place + 24 : place + 28] = struct.pack("<I", MAX_BYTES + 1)
    (predictions / "a.npz").write_bytes(large)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (3, 1 << 40)})
    (predictions / "b.npy").write_bytes(header.getvalue() + bytes(1000))
    (predictions / "c.nii").unlink()
    with gzip.open(predictions / "c.nii.gz", "wb", compresslevel=9) as file:
        file.write(nifti(PROBS))
        for _ in range(300):
            file.write(bytes(1 << 20))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    found = read_predictions(predictions, labels)
    with pytest.raises(ValueError, match=f"{MAX_BYTES + 1} bytes when unpacked, expected at most {MAX_BYTES}"):
        found.read("a")
    with pytest.raises(ValueError, match=r"b\.npy: cannot be read as npy"):
        found.read("b")
    assert found.read("c").labels.shape == SHAPE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes, of 300 MB
    assert time.perf_counter() - started < 20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are POSIX's")
def test_what_is_no_file_is_not_waited_for(folders):
    predictions, labels = folders
    (predictions / "a.npz").unlink()
    os.mkfifo(predictions / "a.npz")
    (predictions / "b.npy").unlink()
    (predictions / "b.npy").mkdir()
    found = read_predictions(predictions, labels)
    assert found.cases == ("a", "c")  # nnU-Net's segmentation stands for the array that is gone
    assert "b.npy: got no prediction in" in found.unmatched[0]
    with pytest.raises(ValueError, match=r"a\.nii\.gz: got "):
        found.read("a")


def test_a_name_that_is_no_text_is_told(folders):
    predictions, labels = folders
    try:
        os.rename(predictions / "b.npy", os.fsencode(predictions) + b"/caf\xe9.npy")
    except OSError:
        pytest.skip("names are UTF-8 on this disk")
    with pytest.raises(ValueError, match=r"caf\\udce9\.npy': got a name that is no text, expected one in UTF-8"):
        read_predictions(predictions, labels)


NUMBERS = [(1.0000001, "1.0000001"), (np.nan, "nan"), (np.inf, "inf"), (1e30, "1e+30"), (-1.0, "-1")]


@pytest.mark.parametrize(("number", "shown"), NUMBERS)
def test_a_wrong_label_is_shown_with_all_its_digits(number, shown, folders):
    labels = LABELS.astype(np.float64)
    labels[0, 0, 0] = number
    np.save(folders[1] / "b.npy", labels)
    with pytest.raises(ValueError, match=rf"b\.npy: got label {re.escape(shown)} \(1 voxels\), expected 0\.\.2"):
        read_predictions(*folders).read("b")


def test_a_number_beyond_float32_is_told_without_a_warning(folders):
    scores = FIRST.astype(np.float64)
    scores[0, 0, 0, 0] = 1e300
    np.save(folders[0] / "b.npy", scores)
    with pytest.raises(ValueError, match=r"b\.npy: got NaN or infinite numbers"):
        read_predictions(*folders).read("b")


@pytest.mark.parametrize("name", ["file", "allow_pickle", "../../outside"])
def test_an_array_of_any_name_comes_back(name, folders, tmp_path):
    predictions, labels = folders
    (predictions / "a.npz").write_bytes(npz(npy(FIRST), name))
    found = read_predictions(predictions, labels)
    path = found.write("a", found.read("a").logits.softmax(0), tmp_path / "out" / "written")
    with np.load(path) as arrays:
        assert arrays.files == [name]
        np.testing.assert_allclose(arrays[name], FIRST, rtol=1e-5)
    assert [file.name for file in (tmp_path / "out").rglob("*") if file.is_file()] == ["a.npz"]


CLIMBING = ["../../outside", "/tmp/outside", "..", "", "a/../../b", "a\0"]


@pytest.mark.parametrize("name", CLIMBING)
def test_a_case_does_not_lead_out_of_the_folder(name, folders, tmp_path):
    """Neither what was judged, which `merge` copies, nor what training kept."""
    (tmp_path / "outside.npz").write_bytes(b"elsewhere")
    judge_folder(*folders, tmp_path / "judged")
    write_index(tmp_path / "kept", "n", NAMES, [name])
    index = json.loads((tmp_path / "judged" / JUDGED).read_text())
    (tmp_path / "judged" / JUDGED).write_text(json.dumps({**index, "cases": ["a", name]}))
    there = sorted(tmp_path.rglob("*"))
    for read in (
        lambda: merge_judged([tmp_path / "judged"], tmp_path / "deep" / "merged"),
        lambda: read_predictions(tmp_path / "kept"),
    ):
        with pytest.raises(ValueError, match=r"json: got the case .*, expected a name without folders"):
            read()
    assert sorted(tmp_path.rglob("*")) == there


@pytest.mark.parametrize("field", ["name", "class_names", "cases", "told", "fitted", "unmatched", "fit_problems"])
def test_an_index_with_a_wrong_field_is_named(field, folders, tmp_path):
    judge_folder(*folders, tmp_path / "judged")
    path = tmp_path / "judged" / JUDGED
    index = json.loads(path.read_text())
    for value in (3, {"a": 1}, [3], ["no colon"]):
        if (field, value) in (("class_names", ["no colon"]), ("cases", ["no colon"])):
            continue  # names like others
        path.write_text(json.dumps({**index, field: value}))
        with pytest.raises(ValueError, match=r"judged\.json: got other content"):
            read_judged(tmp_path / "judged")
    path.write_text(json.dumps({**index, "class_names": ["background", "other"]}))
    with pytest.raises(ValueError, match=r"a\.npz: got a with the classes background, a, b, expected a with"):
        list(read_judged(tmp_path / "judged"))


def test_names_are_shown_as_they_are(folders, tmp_path):
    """Neither HTML nor TeX in a name of the data, of a class or of a case is carried out."""
    predictions, labels = folders
    classes = {"background": 0, r"$\frac$": 1, "<script>alert(1)</script>": 2}
    (predictions / "dataset.json").write_text(json.dumps({"name": "<img src=x> $^$", "labels": classes}))
    os.rename(predictions / "b.npy", predictions / "<b>$_$&.npy")
    os.rename(labels / "b.npy", labels / "<b>$_$&.npy")
    judged = judge_folder(predictions, labels, tmp_path / "out")
    assert judged.problems == ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # three subjects
        write_report(judged)
    page = (tmp_path / "out" / "report.html").read_text()
    for markup in ("<script", "<img src=x", "<b>"):
        assert markup not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("names", [("x", "fg_x"), ("fg", "x"), ("boundary", "x"), ("x", "boundary_x"), ("x", "x")])
def test_classes_that_tables_could_not_tell_apart_are_refused(names, folders):
    with pytest.raises(ValueError, match=r"classes: got background, .*, expected two or more distinct names"):
        read_predictions(*folders, classes=["background", *names])
