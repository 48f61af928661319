"""Files and servers that lie: every reader refuses in its own words, at once, and one bad case hides no other."""

import functools
import gzip
import io
import json
import os
import resource
import shutil
import struct
import time
import zipfile

import nibabel as nib
import numpy as np
import pytest
from fuzzing import Target, fuzz

from mbls.data.acdc import find_patients
from mbls.data.layout import check_dataset, read_dataset
from mbls.data.nifti import read_pair
from mbls.files import MAX_BYTES, MAX_TEXT, read_json, read_npz


def nifti(shape=(8, 8, 2), dtype=np.int16, **fields):
    """A NIfTI file in memory, with some fields of its header written over."""
    image = nib.Nifti1Image(np.zeros(shape, dtype), np.diag([1.5, 1.5, 10, 1]))
    image.header.set_xyzt_units("mm")
    content = bytearray(image.to_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.structarr.tobytes()
    return bytes(content)


def sizes(*numbers):
    return np.array([len(numbers), *numbers, *[1] * (7 - len(numbers))], np.int16)


LIES = {
    "more voxels than any machine has": (
        nifti(dim=sizes(32767, 32767, 32767)),
        r"got the shape \(32767, 32767, 32767\), expected at most 536870912 voxels",
    ),
    "a little too many voxels": (nifti(dim=sizes(1500, 1500, 1500)), "expected at most 536870912 voxels"),
    "a negative dimension": (nifti(dim=sizes(8, -8, 2)), "got the shape|cannot be read as NIfTI"),
    "99 dimensions": (nifti(dim=np.array([99, *[1] * 7], np.int16)), "got the shape|cannot be read as NIfTI"),
    "voxel size NaN": (nifti(pixdim=[1, np.nan, 1.5, 10, 0, 0, 0, 0]), r"voxel sizes \[nan, 1.5, 10.0\]"),
    "voxel size infinite": (nifti(pixdim=[1, 1.5, np.inf, 10, 0, 0, 0, 0]), r"voxel sizes \[1.5, inf, 10.0\]"),
    "voxel size 0": (nifti(pixdim=[1, 1.5, 1.5, 0, 0, 0, 0, 0]), r"voxel sizes \[1.5, 1.5, 0.0\]"),
    "voxel size negative": (nifti(pixdim=[1, -1.5, 1.5, 10, 0, 0, 0, 0]), r"voxel sizes \[-1.5, 1.5, 10.0\]"),
    "affine NaN": (nifti(srow_x=[np.nan, 0, 0, 0]), "an affine that is not finite"),
    "affine infinite": (nifti(srow_y=[0, np.inf, 0, 0]), "an affine that is not finite"),
    "colours": (nifti(datatype=128, bitpix=24), "voxels of .*, expected whole numbers or floating point"),
    "complex numbers": (nifti(dtype=np.complex64), "voxels of complex64, expected whole numbers or floating point"),
    "an unknown type": (nifti(datatype=12345), "cannot be read as NIfTI"),
    "an unknown unit": (nifti(xyzt_units=255), "cannot be read as NIfTI"),
    "voxels far behind": (nifti(vox_offset=1e30), r"voxels from byte 1e\+30 on, expected at most 1048576 bytes"),
    "voxels before the file": (nifti(vox_offset=-16), "voxels from byte -16 on"),
    "voxels nowhere": (nifti(vox_offset=np.nan), "voxels from byte nan on"),
    "nothing": (b"", "cannot be read as NIfTI"),
    "a page": (b"<html>please log in</html>" * 40, "cannot be read as NIfTI"),
    "half of it": (nifti()[:450], "cannot be read as NIfTI"),
}


@pytest.fixture
def pair(tmp_path):
    """Writes an image beside proper labels."""
    labels = tmp_path / "labels.nii.gz"
    labels.write_bytes(gzip.compress(nifti(dtype=np.uint8)))

    def read(content, name="image.nii.gz"):
        path = tmp_path / name
        path.write_bytes(content)
        return read_pair([path], labels, num_classes=4)

    return read


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
def test_a_header_that_lies_is_refused(name, packed, pair):
    content, message = LIES[name]
    with pytest.raises(ValueError, match=message) as caught:
        pair(gzip.compress(content), "image.nii.gz") if packed else pair(content, "image.nii")
    assert "image.nii" in str(caught.value)


def test_the_file_that_the_lies_are_made_from_is_read(pair):
    assert pair(gzip.compress(nifti())).image.shape == (1, 8, 8, 2)
    assert pair(nifti(), "image.nii").spacing == (1.5, 1.5, 10.0)


def test_a_gzip_bomb_is_not_unpacked(pair, tmp_path):
    """Behind the voxels, and before them: nothing beyond the voxels claimed is unpacked."""
    path = tmp_path / "image.nii.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(nifti())
        for _ in range(300):
            file.write(bytes(1 << 20))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    assert pair(path.read_bytes()).image.shape == (1, 8, 8, 2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes, of 300 MB
    with pytest.raises(ValueError, match="voxels from byte"):
        pair(gzip.compress(nifti(vox_offset=2.0**30) + bytes(1 << 24)))
    assert time.perf_counter() - started < 20


INFOS = {
    "empty": (b"", "got no entry 'ED'"),
    "4000 digits": (b"ED: " + b"9" * 4000 + b"\nES: 2\n", "got ED: '99999999999999999999', expected a frame number"),
    "a minus": (b"ED: -1\nES: 2\n", "got ED: '-1', expected a frame number"),
    "digits of another script": ("ED: \u0661\nES: 2\n".encode(), "expected a frame number"),
    "a climbing path": (b"ED: ../../etc/passwd\nES: 2\n", "expected a frame number"),
    "zeros": (bytes(100), "got no entry 'ED'"),
    "a huge one": (b"ED: 1\nES: 2\n" + b"x: y\n" * 20_000, "got more than 65536 bytes"),
}


@pytest.mark.parametrize("name", INFOS)
def test_an_info_of_any_bytes_is_refused(name, tmp_path):
    content, message = INFOS[name]
    folder = tmp_path / "patient001"
    folder.mkdir()
    (folder / "Info.cfg").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        find_patients(tmp_path)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    folder = tmp_path / "patient001"
    folder.mkdir()
    (folder / "Info.cfg").write_bytes(b"\xef\xbb\xbfED: 1\nES: 12\n")
    assert find_patients(tmp_path)[0].es_frame == 12


DESCRIPTIONS = {
    "null": b"null",
    "a list": b"[]",
    "nested": b"[" * 100_000 + b"]" * 100_000,
    "labels nested": b'{"labels": ' + b'{"a":' * 50_000 + b"0" + b"}" * 50_001,
    "no JSON": b"\xff\xfe\x00",
    "labels null": b'{"labels": null, "channel_names": {"0": "MR"}}',
    "labels of lists": b'{"labels": {"background": [0, 1]}, "channel_names": {"0": "MR"}}',
    "channels a number": b'{"labels": {"background": 0, "a": 1}, "channel_names": 3}',
    "a huge number": b'{"labels": {"background": 0, "a": ' + b"9" * 5000 + b'}, "channel_names": {"0": "MR"}}',
    "an ending that climbs": (
        b'{"labels": {"background": 0, "a": 1}, "channel_names": {"0": "MR"}, "file_ending": "/../x"}'
    ),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_description_of_any_content_is_refused(name, tmp_path):
    (tmp_path / "dataset.json").write_bytes(DESCRIPTIONS[name])
    with pytest.raises(ValueError, match=r"dataset\.json: "):
        read_dataset(tmp_path)


def test_json_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "dataset.json"
    with path.open("wb") as file:
        file.truncate(MAX_TEXT + 1)  # a hole: it takes no space
    with pytest.raises(ValueError, match=f"got {MAX_TEXT + 1} bytes of JSON, expected at most {MAX_TEXT}"):
        read_json(path)


class Planted:
    """A pickle that would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_in_an_npz_is_not_run(tmp_path):
    path, planted = tmp_path / "a.npz", tmp_path / "planted"
    np.savez(path, probs=np.array([Planted(str(planted))], dtype=object))
    with pytest.raises(ValueError, match="cannot be read as npz"):
        read_npz(path)
    assert not planted.exists()


def test_an_npz_that_claims_too_much_is_not_unpacked(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("probs.npy", "w") as file:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
        file.write(header.getvalue() + bytes(1 << 10))
    with pytest.raises(ValueError, match="cannot be read as npz"):
        read_npz(path, ["probs"])
    large = bytearray(path.read_bytes())
    place = large.rfind(b"PK\x01\x02")  # the directory's entry; its unpacked size stands 24 bytes on
    large[place + 24 : place + 28] = struct.pack("<I", MAX_BYTES + 1)
    path.write_bytes(large)
    with pytest.raises(ValueError, match=f"{MAX_BYTES + 1} bytes when unpacked, expected at most {MAX_BYTES}"):
        read_npz(path, ["probs"])


def test_one_bad_patient_hides_no_other(phantom_root, tmp_path):
    root = tmp_path / "phantom"
    shutil.copytree(phantom_root, root)
    first, second, third, *others = find_patients(root)
    (first.path("ED")).write_bytes(gzip.compress(LIES["more voxels than any machine has"][0]))
    (second.folder / "Info.cfg").write_bytes(bytes(100))
    third.path("ES", "probs").write_bytes(b"nothing")
    report = check_dataset(root)
    assert "expected at most 536870912 voxels" in report["patient001"][0]
    assert "got no entry 'ED'" in report["patient002"][0]
    assert "cannot be read as npz" in report["patient003"][0]
    assert all(report[patient.id] == [] for patient in others)


def targets(folder):
    """A file of each kind with its reader."""
    case = folder / "patient001"
    case.mkdir(exist_ok=True)
    description = json.dumps({"labels": {"background": 0, "a": 1}, "channel_names": {"0": "MR"}}).encode()
    array = io.BytesIO()
    np.savez_compressed(array, probs=np.full((4, 8, 8, 2), 63, np.uint8))
    proper = case / "proper.nii"
    proper.write_bytes(nifti(dtype=np.uint8))
    root = folder / "nnunet"
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
        (root / name / "a.nii").write_bytes(nifti(dtype=np.uint8))
    readers = {
        "image.nii": (nifti(), lambda path: read_pair([path], proper, 4)),
        "image.nii.gz": (gzip.compress(nifti()), lambda path: read_pair([path], proper, 4)),
        "labels.nii": (nifti(dtype=np.uint8), lambda path: read_pair([proper], path, 4)),
        "Info.cfg": (b"ED: 1\nES: 12\nGroup: DCM\n", lambda path: find_patients(folder)),
        "../nnunet/dataset.json": (description, lambda path: read_dataset(root)),
        "probs.npz": (array.getvalue(), lambda path: read_npz(path, ["probs"])),
    }
    return [
        Target(case / name, content, functools.partial(read, case / name)) for name, (content, read) in readers.items()
    ]


@pytest.mark.filterwarnings("ignore")  # a mutated header may make nibabel and numpy warn of anything
def test_a_thousand_mutated_files(tmp_path):
    assert fuzz(tmp_path, targets(tmp_path), times=1000, seed=0) > 500


@pytest.mark.slow  # a hundred thousand files, some minutes
@pytest.mark.filterwarnings("ignore")
def test_a_hundred_thousand_mutated_files(tmp_path):
    assert fuzz(tmp_path, targets(tmp_path), times=100_000, seed=1) > 50_000
