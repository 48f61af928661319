"""The phantom: repeatable, in the layout of ACDC, like ACDC in its statistics, and true to its stored probabilities."""

import hashlib
import json

import numpy as np
import pytest

from mbls.data.acdc import GROUPS, PHANTOM_MARKER, PHASES
from mbls.data.layout import read_dataset
from mbls.data.phantom import make_phantom
from mbls.metrics import expected_calibration_error


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def contents(root):
    """What a reader sees, without the time stamps that gzip and zip carry."""
    digest = hashlib.sha256()
    for case in read_dataset(root).cases:
        volume = case.read()
        for array in (volume.image.astype(np.int16), volume.labels, (255 * volume.truth).round().astype(np.uint8)):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def test_same_seed_same_data(phantom_root, tmp_path):
    again = make_phantom(tmp_path / "again", num_patients=5, seed=3)
    assert contents(again) == contents(phantom_root)
    other = make_phantom(tmp_path / "other", num_patients=1, seed=4)
    assert contents(other) != contents(make_phantom(tmp_path / "one", num_patients=1, seed=3))


def test_an_existing_phantom_is_left_alone(phantom_root):
    before = files(phantom_root)
    assert make_phantom(phantom_root, num_patients=5, seed=3) == phantom_root
    assert files(phantom_root) == before


def test_something_else_is_not_overwritten(phantom_root, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else"):
        make_phantom(tmp_path, 1)
    with pytest.raises(FileExistsError, match="holds something else"):
        make_phantom(phantom_root, num_patients=6, seed=3)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_interrupted_run_leaves_nothing_behind(tmp_path, monkeypatch):
    import mbls.data.phantom

    original = mbls.data.phantom._write_patient

    def interrupted(folder, number, seed):
        if number == 2:
            raise KeyboardInterrupt
        original(folder, number, seed)

    monkeypatch.setattr(mbls.data.phantom, "_write_patient", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_phantom(tmp_path / "phantom", 2)
    assert list(tmp_path.iterdir()) == []


def test_it_says_what_it_is(phantom_root):
    assert "not patients" in json.loads((phantom_root / PHANTOM_MARKER).read_text())["what"]
    assert list(read_dataset(phantom_root).subjects.values()) == list(GROUPS)
    assert read_dataset(phantom_root).name == "phantom"


def statistics(root):
    """Class fractions and mean intensities of the centred 128 x 128 voxels: (phase, group, fractions, means) a
    volume."""
    rows = []
    for case in read_dataset(root).cases:
        volume = case.read()
        x, y = (max((n - 128) // 2, 0) for n in volume.labels.shape[:2])
        labels, image = (array[x : x + 128, y : y + 128] for array in (volume.labels, volume.image[0]))
        fractions = [(labels == label).mean() for label in range(4)]
        means = [image[labels == label].mean() for label in range(4)]
        rows.append((case.id[-2:], case.group, fractions, means))
    return rows


#: Means over 160 real ACDC volumes, the same way: fractions of RV, MYO, LV; intensities of background, RV, MYO, LV
#: (0..1000).
ACDC_FRACTIONS = (0.0363, 0.0402, 0.0399)
ACDC_MEANS = (272, 527, 261, 623)
#: Fraction of the LV in end-diastole and end-systole by group.
ACDC_LV = {
    "NOR": (0.042, 0.017),
    "DCM": (0.079, 0.065),
    "HCM": (0.039, 0.012),
    "MINF": (0.055, 0.039),
    "RV": (0.036, 0.016),
}


def test_statistics_are_like_those_of_acdc(phantom_root):
    rows = statistics(phantom_root)
    fractions = np.mean([row[2] for row in rows], axis=0)
    means = np.mean([row[3] for row in rows], axis=0)
    np.testing.assert_allclose(fractions[1:], ACDC_FRACTIONS, rtol=0.25)
    np.testing.assert_allclose(means, ACDC_MEANS, rtol=0.2)
    for group, expected in ACDC_LV.items():
        found = [next(row[2][3] for row in rows if row[:2] == (phase, group)) for phase in PHASES]
        np.testing.assert_allclose(found, expected, rtol=0.35, err_msg=group)


def test_labels_follow_the_stored_probabilities(phantom):
    """Pooled over the uncertain voxels, labels come up as often as their probabilities say; so the stored ones are
    calibrated."""
    import torch

    probs, labels = [], []
    for case in phantom.cases:
        volume = case.read()
        unsure = volume.truth.max(0) < 250 / 255
        probs.append(volume.truth[:, unsure].T.astype(float))
        labels.append(volume.labels[unsure])
    probs, labels = torch.tensor(np.concatenate(probs)), torch.tensor(np.concatenate(labels)).long()
    assert len(labels) > 50_000
    assert expected_calibration_error(probs, labels) < 0.02
    assert 0.6 < (probs.argmax(1) == labels).double().mean() < 0.9


def test_labels_are_smooth_contours_not_speckle(phantom):
    from scipy.ndimage import label as connected

    volume = phantom.cases[0].read()
    middle = volume.labels[..., volume.labels.shape[2] // 2]
    for structure in (1, 2, 3):
        pieces, count = connected(middle == structure)
        largest = np.bincount(pieces.flat)[1:].max()
        assert largest / (middle == structure).sum() > 0.95, f"{count} pieces"


@pytest.mark.parametrize(("arguments", "message"), [((0, 0), "num_patients: got 0"), ((1, -1), "seed: got -1")])
def test_bad_input(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_phantom(tmp_path / "phantom", *arguments)
