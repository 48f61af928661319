"""A cohort judged: tables against the metrics, bad files, shards and processes to the bit, fit and write, the page."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest

from mbls.__main__ import main
from mbls.engine.judge import judge
from mbls.engine.predict import fit_temperature
from mbls.engine.read import read_predictions
from mbls.metrics import CalibrationBins
from mbls.report import judge_folder, make_tables, merge_judged, read_judged, write_report
from mbls.report.calibrate import sampled
from mbls.report.tables import WINNER
from mbls.statistics import bootstrap_interval

SUBJECT = r"(p\d+)_"
TABLES = ("cases", "classes", "bins", "distances", "summary", "volumes", "risk", "problems")


@pytest.fixture(scope="module")
def judged(cohort, validation, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return judge_folder(*cohort, out, subject=SUBJECT, fit=validation, write=out / "written")


@pytest.fixture(scope="module")
def tables(judged):
    return make_tables(judged)


def test_cases_and_classes_are_what_judge_says(cohort, tables):
    found = read_predictions(*cohort, subject=SUBJECT)
    whole = judge(found, found.class_names)
    assert tables.cases["case"].tolist() == [row["case"] for row in whole.cases]
    assert tables.cases["subject"].nunique() == 6
    for column in ("dsc", "hd95", "ece", "smece_fg", "brier_calibration_boundary", "nll"):
        np.testing.assert_allclose(tables.cases[column], [row[column] for row in whole.cases], rtol=1e-12)
    for name in found.class_names[1:]:
        own = tables.classes[tables.classes["class"] == name]
        np.testing.assert_array_equal(own["dsc"], [row[f"dsc_{name}"] for row in whole.cases])
        np.testing.assert_array_equal(own["cece_fg"], [row[f"cece_fg_{name}"] for row in whole.cases])
    pooled = tables.summary.query("over == 'voxels' and stage == 'as given' and metric == 'cece'")
    assert pooled.set_index("region")["mean"]["foreground"] == pytest.approx(whole.pooled()["cece_fg"], rel=1e-12)


def test_bins_hold_every_voxel_of_every_class(tables):
    winner = tables.bins[(tables.bins["region"] == "all") & (tables.bins["class"] == WINNER)]
    assert winner["count"].sum() == tables.cases["voxels"].sum() == tables.distances["count"].sum()
    assert winner["hit_sum"].sum() == tables.distances["hit_sum"].sum()
    of_classes = tables.bins[(tables.bins["region"] == "all") & (tables.bins["class"] != WINNER)]
    assert of_classes["hit_sum"].sum() == tables.cases["voxels"].sum()


def test_intervals_are_over_subjects(tables):
    by_subject = tables.cases.groupby("subject")["ece"].mean().to_numpy()  # two cases each: the same weights
    with pytest.warns(UserWarning, match="over 6 subjects"):
        low, high = bootstrap_interval(by_subject)
    row = tables.summary.query("metric == 'ece' and over == 'cases' and region == 'all' and stage == 'as given'")
    assert row[["mean", "low", "high"]].to_numpy()[0] == pytest.approx([by_subject.mean(), low, high])


def test_volumes_and_their_intervals(tables):
    own = tables.classes[tables.classes["class"] == "b"]
    assert set(own["volume_unit"]) == {"ml"}
    assert own["volume_true"].iloc[0] == pytest.approx(round(own["volume_true"].iloc[0] / 0.018) * 0.018)
    row = tables.volumes.set_index("class").loc["b"]
    inside = (own["volume_true"] >= own["naive_low"]) & (own["volume_true"] <= own["naive_high"])
    assert row["naive_coverage"] == inside.mean()
    assert row["conformal_coverage"] >= 0.75  # 20 cases at 95 %: mostly all


def test_a_fit_finds_the_temperature_and_writes_what_came_in(cohort, validation, judged, tables, tmp_path):
    assert judged.fitted.temperature == pytest.approx(fit_temperature(read_predictions(*validation)).temperature)
    assert judged.fitted.temperature > 1.3  # the logits were doubled
    over = tables.summary.query("metric == 'ece' and over == 'cases' and region == 'all'").set_index("stage")["mean"]
    assert over["scaled"] < 0.5 * over["as given"]
    again = judge_folder(judged.folder / "written", cohort[1], tmp_path / "again", subject=SUBJECT)
    np.testing.assert_allclose(make_tables(again).cases["ece"], tables.cases["scaled_ece"], atol=1e-6)
    assert again.class_names == judged.class_names


def test_shards_and_processes_give_the_same_files_to_the_bit(cohort, judged, tmp_path):
    options = {"subject": SUBJECT}
    one = judge_folder(*cohort, tmp_path / "one", **options)
    write_report(one)
    many = judge_folder(*cohort, tmp_path / "many", workers=2, **options)
    write_report(many)
    for number in (1, 2, 3):
        judge_folder(*cohort, tmp_path / f"{number}", shard=(number, 3), **options)
    merged = merge_judged([tmp_path / "1", tmp_path / "2", tmp_path / "3"], tmp_path / "merged")
    assert (merged.failed, merged.cases) == (0, one.cases)
    write_report(merged)
    for name in TABLES:
        expected = (tmp_path / "one" / f"{name}.csv").read_bytes()
        assert (tmp_path / "many" / f"{name}.csv").read_bytes() == expected, name
        assert (tmp_path / "merged" / f"{name}.csv").read_bytes() == expected, name
    part = merge_judged([tmp_path / "1", tmp_path / "3"], tmp_path / "part")
    assert part.failed == 4
    with pytest.raises(ValueError, match="got other fitted than"):
        merge_judged([tmp_path / "1", judged.folder], tmp_path / "wrong")


def test_a_stopped_run_goes_on_and_changed_files_are_judged_again(cohort, tmp_path, monkeypatch):
    predictions = shutil.copytree(cohort[0], tmp_path / "predictions")
    read = []
    original = type(read_predictions(predictions, cohort[1])).read

    def counted(self, case):
        if len(read) == 5 and case not in read:
            raise KeyboardInterrupt
        read.append(case)
        return original(self, case)

    monkeypatch.setattr(type(read_predictions(predictions, cohort[1])), "read", counted)
    with pytest.raises(KeyboardInterrupt):
        judge_folder(predictions, cohort[1], tmp_path / "out")
    monkeypatch.setattr(type(read_predictions(predictions, cohort[1])), "read", original)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "judged_cases").iterdir()}
    assert len(before) == 5
    shutil.copyfile(predictions / "p05_1.npz", predictions / "p00_0.npz")
    whole = judge_folder(predictions, cohort[1], tmp_path / "out")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "judged_cases").iterdir()}
    assert len(whole.cases) == len(after) == 12
    assert [name for name in before if after[name] != before[name]] == ["p00_0.npz"]
    assert read_judged(tmp_path / "out").cases == whole.cases


def test_one_bad_file_among_many(cohort, tmp_path, capsys):
    predictions = shutil.copytree(cohort[0], tmp_path / "predictions")
    labels = shutil.copytree(cohort[1], tmp_path / "labels")
    (predictions / "p01_0.npz").write_bytes((predictions / "p01_0.npz").read_bytes()[:2000])
    probs = np.load(predictions / "p02_0.npz")["probabilities"]
    np.savez_compressed(predictions / "p02_0.npz", probabilities=probs[:, :, :-1])
    np.savez_compressed(
        predictions / "p03_0.npz", probabilities=np.load(predictions / "p03_0.npz")["probabilities"] / 2
    )
    floored = np.eye(3, dtype=np.float32)[np.load(predictions / "p03_1.npz")["probabilities"].argmax(0)]
    np.savez_compressed(predictions / "p03_1.npz", probabilities=floored.transpose(3, 0, 1, 2))
    (labels / "p04_0.nii.gz").unlink()
    out = tmp_path / "out"
    assert main(["judge", str(predictions), str(labels), "--out", str(out), "--subject", SUBJECT, "--quiet"]) == 1
    told = capsys.readouterr().err
    for case, problem in {"p01_0": "cannot be read as npz", "p02_0": "got shape", "p03_0": "sums off 1"}.items():
        assert re.search(f"{case}.*{problem}", told), told
    assert "p04_0.npz: got no labels" in told
    cases = pd.read_csv(out / "cases.csv")
    assert len(cases) == 12 - 4
    assert cases.set_index("case")["floored"].to_dict()["p03_1"] == 2 * 4 * 24 * 24
    assert np.isfinite(cases["nll"]).all()
    assert pd.read_csv(out / "problems.csv")["case"].tolist()[:3] == ["p01_0", "p02_0", "p03_0"]
    page = (out / "report.html").read_text()
    assert "3 case(s) could not be judged" in page
    assert "were raised to 1e-8" in page


def test_the_page_is_one_file_that_asks_nobody(judged, tables):
    _, paths = write_report(judged)
    page = paths[0].read_text()
    assert paths[0].name == "report.html"
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert "<script" not in page
    assert page.count("data:image/") >= 7 + 6
    assert page.count("<img") == page.count('alt="')
    ece = tables.summary.query("metric == 'ece' and over == 'cases' and region == 'all'")["mean"].iloc[0]
    assert f"{ece:.4f}" in page
    assert f"T = {judged.fitted.temperature:.3f}" in page
    assert {path.stem for path in (judged.folder / "pictures").iterdir()} >= {"reliability", "heat_map", "scaling"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--out: got none"),
        (["--out", "o", "--write", "w"], "--write: got a folder without fit"),
        (["--out", "o", "--workers", "0"], "--workers: got 0"),
        (["--out", "o", "--shard", "3/2"], "--shard: got '3/2'"),
        (["--out", "o", "--logits"], "no case could be judged|got no case that could be judged"),
    ],
)
def test_options_that_do_not_fit_are_named(cohort, tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert main(["judge", *map(str, cohort), *arguments, "--quiet"]) == 2
    assert re.search(told, capsys.readouterr().err)


def test_one_folder_is_a_run(tmp_path, capsys):
    assert main(["judge", str(tmp_path)]) == 2
    assert "missing, expected the predictions of a run" in capsys.readouterr().err
    assert main(["judge", str(tmp_path), "--workers", "2"]) == 2
    assert "--workers: got it with one folder" in capsys.readouterr().err


def test_the_sample_of_a_case_is_seeded_and_counts(cohort):
    one = next(iter(read_predictions(*cohort)))
    some, again = sampled(one, 100), sampled(one, 100)
    assert some.labels.tolist() == again.labels.tolist()
    assert some.logits.shape == (3, 100)
    everything = sampled(one)
    bins = CalibrationBins(3).update(everything.logits.softmax(0).T, everything.labels)
    assert bins.num_voxels == one.labels.numel()
