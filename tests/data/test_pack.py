"""The compact file: unpacked it is a data set that gives the same slices."""

import tarfile

import pytest

from mbls.__main__ import main
from mbls.data.acdc import find_patients
from mbls.data.layout import check_dataset, read_dataset
from mbls.data.pack import pack_patients
from mbls.data.slices import SliceDataset


def assert_within_a_step(before, after):
    """Half of one of 255 steps of the volume's range, and a little for rounding."""
    for volume in before.volumes:
        images, packed = (part.images[volume.start : volume.stop] for part in (before, after))
        assert (images - packed).abs().max() <= 0.502 / 255 * (images.max() - images.min())


@pytest.mark.parametrize("size", [64, 65])
def test_unpacked_it_gives_the_same_slices(phantom_root, tmp_path, size):
    path = pack_patients(phantom_root, tmp_path / "new" / "phantom.tar.xz", size)
    assert [entry.name for entry in path.parent.iterdir()] == ["phantom.tar.xz"]
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert not any(check_dataset(tmp_path / "unpacked").values())
    before, after = (read_dataset(root).first(2) for root in (phantom_root, tmp_path / "unpacked"))
    for crop in (size, 48):
        sets = [SliceDataset(data, size=crop, scaling="none") for data in (before, after)]
        assert_within_a_step(*sets)
        assert sets[0].labels.equal(sets[1].labels)
        assert sets[0].volumes == sets[1].volumes


def test_real_volumes(acdc_root, tmp_path):
    """Two patients: grids of other sizes than the phantom's, and no spacing."""
    for patient in find_patients(acdc_root)[:2]:
        (tmp_path / "some").mkdir(exist_ok=True)
        (tmp_path / "some" / patient.id).symlink_to(patient.folder)
    assert main(["pack", "--data", str(tmp_path / "some"), "--out", str(tmp_path / "acdc.tar.xz")]) == 0
    with tarfile.open(tmp_path / "acdc.tar.xz") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    sets = [SliceDataset(read_dataset(tmp_path / name), size=192, scaling="none") for name in ("some", "unpacked")]
    assert_within_a_step(*sets)
    assert sets[0].labels.equal(sets[1].labels)
    assert sets[0].volumes == sets[1].volumes
    assert (tmp_path / "acdc.tar.xz").stat().st_size < 2 * 800_000


def test_bad_requests_leave_nothing_behind(phantom_root, tmp_path, capsys):
    with pytest.raises(ValueError, match="size: got 0"):
        pack_patients(phantom_root, tmp_path / "a.tar.xz", 0)
    assert main(["pack", "--data", str(phantom_root), "--out", str(tmp_path / "a.zip")]) == 2
    assert "expected a name that ends in .tar.xz" in capsys.readouterr().err
    (tmp_path / "broken" / "patient001").mkdir(parents=True)
    (tmp_path / "broken" / "patient001" / "Info.cfg").write_text("ED: 1\nES: 2\n")
    with pytest.raises(FileNotFoundError, match="patient001_frame01"):
        pack_patients(tmp_path / "broken", tmp_path / "a.tar.xz")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["broken"]
