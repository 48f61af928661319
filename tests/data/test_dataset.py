"""Splits never part a subject, and say what does not fit."""

import json
from collections import Counter

import pytest

from mbls.data.acdc import GROUPS
from mbls.data.dataset import Case, Dataset, read_split, split


def make_dataset(count=100):
    """Two cases a subject, twenty subjects a group."""
    cases = [
        Case(f"patient{number:03d}_{visit}", f"patient{number:03d}", lambda: None, GROUPS[number // 20])
        for number in range(count)
        for visit in ("a", "b")
    ]
    return Dataset("made", ("background", "organ"), tuple(cases))


def test_split_is_by_subject_stratified_and_repeatable():
    dataset = make_dataset()
    parts = split(dataset, 0.7, 0.1, 0.2, seed=4)
    subjects = [subject for part in parts for subject in part.subjects]
    assert len(subjects) == len(set(subjects)) == 100
    assert [len(part.cases) for part in parts] == [140, 20, 40]
    for part, each in zip(parts, (14, 2, 4), strict=True):
        assert Counter(part.subjects.values()) == dict.fromkeys(GROUPS, each)
    backwards = Dataset(dataset.name, dataset.class_names, dataset.cases[::-1])
    assert [list(part.subjects) for part in split(backwards, 0.7, 0.1, 0.2, seed=4)] == [
        list(part.subjects) for part in parts
    ]
    assert parts != split(dataset, 0.7, 0.1, 0.2, seed=5)
    assert [len(part.subjects) for part in split(dataset, 15, 5, 10)] == [15, 5, 10]
    # Pinned: the split must be the same on every machine.
    assert list(split(dataset, 5, 0, 0).train.subjects) == PINNED


PINNED = ["patient027", "patient054", "patient070", "patient008", "patient097"]


@pytest.mark.parametrize("sizes", [(90, 10, 1), (0, 50, 50), (-1, 2, 2), (0.9, 0.1, 0.1)])
def test_split_sizes_that_do_not_fit(sizes):
    with pytest.raises(ValueError, match="train, val, test: got"):
        split(make_dataset(), *sizes)


def test_a_case_twice_is_refused():
    case = make_dataset(1).cases[0]
    with pytest.raises(ValueError, match="cases: got patient000_a more than once"):
        Dataset("made", ("background", "organ"), (case, case))


@pytest.mark.parametrize("names", [("organ", "organ"), ("fg",), ("boundary",), ("organ", "fg_organ"), ()])
def test_class_names_tell_columns_apart(names):
    with pytest.raises(ValueError, match=r"class_names: got background.*expected two or more distinct names"):
        Dataset("made", ("background", *names), ())


def test_a_split_fixed_in_a_file(phantom, tmp_path):
    names = list(phantom.subjects)
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": [names[3], names[0]], "val": [], "test": [names[1]]}))
    parts = read_split(path, phantom)
    assert [list(part.subjects) for part in parts] == [[names[3], names[0]], [], [names[1]]]
    assert [case.id[-2:] for case in parts.train.cases] == ["ED", "ES"] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('{"train": ["patient001"], "val": []}', "cannot be read as a split"),
        ('{"train": ["patient001"], "val": ["patient001"], "test": []}', "patient001 more than once"),
        ('{"train": ["patient001"], "val": [], "test": ["patient999"]}', "phantom does not have .patient999"),
        ('{"train": [], "val": [], "test": ["patient001"]}', "no training subject"),
    ],
)
def test_bad_split_files_are_named(phantom, tmp_path, content, message):
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"split\.json.*{message}") as error:
        read_split(path, phantom)
    assert str(error.value).count("split.json") == 1
    with pytest.raises(FileNotFoundError, match=r"split: got .*other\.json"):
        read_split(tmp_path / "other.json", phantom)
