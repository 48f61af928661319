"""The study: what it consists of, and that every one of its rows trains."""

from collections import Counter
from dataclasses import replace

import pytest

from mbls.data.acdc import GROUPS
from mbls.data.dataset import read_split, split
from mbls.data.home import data_home
from mbls.data.layout import read_dataset
from mbls.engine.fit import FitSettings
from mbls.study.experiment import compare, load_data
from mbls.study.paper import FEW_PATIENTS, PAPER, PARTS, PROTOCOLS, REDUCED, parts, study

SPLIT = data_home() / "acdc_split.json"


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_every_run_has_its_own_name_and_three_seeds(protocol):
    runs = study(protocol)
    assert len({run.name for run in runs}) == len(runs) == 3 * (17 + 6 + 2 + 16 + 9)
    assert Counter(run.fit.seed for run in runs) == {0: 50, 1: 50, 2: 50}
    assert [run.fit.seed for run in runs] == sorted(run.fit.seed for run in runs)
    # A run of two parts is the same in both.
    known = {run.name: run for run in runs}
    for experiments in parts(protocol).values():
        assert all(known[experiment.name] == experiment for experiment in experiments)


def test_the_papers_protocol():
    (mbls,) = (run for run in study(PAPER, [0], ["losses"]) if run.loss == "mbls:margin=5")
    assert (mbls.size, mbls.crop, mbls.base_channels, mbls.levels, mbls.norm) == (192, None, 32, 5, None)
    official = {"epochs": 100, "batch_size": 4, "learning_rate": 1e-3, "lr_step": 50, "lr_decay": 0.1}
    assert mbls.fit == FitSettings(**official, full_validation_every=5)
    (few,) = (run for run in study(PAPER, [0], ["few_patients"]) if run.name == "ls-5patients-seed0")
    assert few.fit == mbls.fit  # as many epochs, so fewer steps


def test_the_reduced_protocol_is_the_papers_but_for_resolution_width_and_normalisation():
    other = {"size": 64, "crop": 128, "base_channels": 8, "levels": 4, "norm": "batch", "judged": ("last", "best")}
    assert REDUCED.base == replace(PAPER.base, **other)
    assert set(PAPER.base.judged) == set(REDUCED.base.judged)


def test_unknown_part():
    with pytest.raises(ValueError, match="parts: got margin, expected some of losses, margins"):
        study(REDUCED, only=["margin"])


def test_single_runs_by_name():
    names = [run.name for run in study(REDUCED, [0, 1])]
    chosen = study(REDUCED, [0, 1], runs=[names[60], names[3], names[3]])
    assert [run.name for run in chosen] == [names[3], names[60]]
    assert chosen[0] in study(REDUCED, [0])
    near = r"runs: got 'mbls-margin5-seed2', expected names .*, e\.g\. mbls-margin5-seed[01]"
    with pytest.raises(ValueError, match=near):
        study(REDUCED, [0, 1], runs=["ce-seed0", "mbls-margin5-seed2"])


def test_the_fixed_split_is_stratified_and_any_beginning_of_it_too(acdc_root):
    acdc = read_dataset(acdc_root)
    fixed = read_split(SPLIT, acdc)
    assert fixed == split(acdc, 56, 8, 16)
    for number in (*FEW_PATIENTS, 56):
        groups = Counter(fixed.train.first(number).subjects.values())
        assert set(groups) == set(GROUPS)
        assert max(groups.values()) - min(groups.values()) <= 1


@pytest.mark.slow  # trains 38 networks, a minute and a half
def test_every_row_trains(phantom_root, tmp_path):
    """All of the study with small networks, one epoch, and as many patients as a small phantom has."""
    shape = {"split": None, "patients": (2, 1, 1), "size": 64, "crop": 128, "surface": False}
    base = replace(REDUCED.base, **shape, base_channels=4, levels=3, fit=FitSettings(epochs=1, batch_size=16))
    backbones = tuple((name, 12 if name == "swin_unetr" else 4) for name, _ in REDUCED.backbones)
    protocol = replace(REDUCED, base=base, backbones=backbones)
    runs = [replace(run, train_patients=run.train_patients and 1) for run in study(protocol, [0])]
    runs = {run.name: replace(run, fit=base.fit) for run in runs}
    table = compare(runs.values(), phantom_root, tmp_path, progress=False)
    # Every size of a small training set is the same here, and its runs have one name.
    assert len(table) == 2 * (17 + 6 + 2 + 4 + 9)
    assert (
        table[["dsc", "ece", "cece_fg", "aece", "nll", "brier", "temperature", "scaled_ece", "scaled_cece_fg"]]
        .notna()
        .all()
        .all()
    )
    assert (table["scaled_nll"] < table["nll"] + 0.1).all()
    assert set(table["train_patients"]) == {1, 2}


def test_few_patients_are_the_first_of_all(phantom_root):
    base = replace(REDUCED.base, split=None, patients=(3, 1, 1), size=32, crop=96)
    whole, two = load_data(base, phantom_root), load_data(replace(base, train_patients=2), phantom_root)
    assert [volume.subject for volume in two.train.volumes] == [volume.subject for volume in whole.train.volumes][:4]
    assert len(two.train) == two.train.volumes[-1].stop < len(whole.train)
    assert two.train.labels.equal(whole.train.labels[: len(two.train)])
    assert two.fingerprint == whole.fingerprint
    with pytest.raises(ValueError, match="train_patients: got 4, expected 1 to the 3 of the split"):
        load_data(replace(base, train_patients=4), phantom_root)


def test_parts_are_named():
    assert tuple(parts(REDUCED)) == PARTS
