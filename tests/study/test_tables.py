"""Tables of a study: means and spreads, ranks, paired tests; the recorded rows give the recorded Markdown."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from mbls.__main__ import main
from mbls.data.home import data_home
from mbls.study.paper import REDUCED, study
from mbls.study.report import write_report
from mbls.study.tables import (
    RANKED,
    TESTED,
    in_words,
    label,
    mean_and_spread,
    paired_tests,
    per_subject,
    ranks,
    short_table,
    study_report,
)

RECORDED = data_home() / "results" / "acdc_reduced"


def runs(figures, seeds=(0, 1)):
    """A table of runs: loss -> figure -> one value a seed."""
    return pd.DataFrame(
        {"loss": loss, "model": "unet", "train_patients": 56, "seed": seed}
        | {name: values[seed] for name, values in row.items()}
        for loss, row in figures.items()
        for seed in seeds
    )


def test_mean_and_spread_keep_the_order_of_the_table():
    table = runs({"ls": {"dsc": (0.8, 0.9)}, "ce": {"dsc": (0.5, 0.5)}})
    spread = mean_and_spread(table, ["dsc"])
    assert list(spread.index) == ["ls", "ce"]
    assert spread["dsc", "mean"].tolist() == pytest.approx([0.85, 0.5])
    assert spread["dsc", "std"].tolist() == pytest.approx([0.1 / np.sqrt(2), 0])
    assert spread["seeds", "count"].tolist() == [2, 2]


def test_ranks_know_which_way_is_better_and_share_ties():
    table = runs(
        {
            "ce": {"dsc": (0.8, 0.8), "ece": (0.3, 0.3)},
            "ls": {"dsc": (0.9, 0.9), "ece": (0.1, 0.1)},
            "fl": {"dsc": (0.7, 0.9), "ece": (0.2, 0.2)},
        }
    )
    placed = ranks(table, ["dsc", "ece"])
    assert list(placed.index) == ["ls", "fl", "ce"]
    assert placed["dsc"].to_dict() == {"ls": 1, "fl": 2.5, "ce": 2.5}
    assert placed["ece"].to_dict() == {"ls": 1, "fl": 2, "ce": 3}
    assert placed["mean rank"].tolist() == [1, 2.25, 2.75]


def patients(**differences):
    """Twelve patients, two seeds; the losses' ECE lies above CE's by the differences given."""
    generator = np.random.default_rng(0)
    base = generator.uniform(0.1, 0.2, 12)
    rows = []
    for loss, shift in {"ce": np.zeros(12), **differences}.items():
        for seed, noise in ((0, 0.01), (1, -0.01)):  # cancels in the mean over seeds
            rows += [
                {"loss": loss, "seed": seed, "subject": f"p{i:02d}", "ece": base[i] + shift[i] + noise}
                for i in range(12)
            ]
    return pd.DataFrame(rows)


def test_paired_tests_take_each_patient_once_and_correct_for_the_number_of_losses():
    better, mixed = -np.linspace(0.01, 0.02, 12), np.array([0.01, -0.011] * 6) * np.arange(1, 13)
    tests = paired_tests(patients(ls=better, fl=mixed, same=np.zeros(12)), metrics=["ece"]).set_index("loss")
    assert tests["difference"]["ls"] == pytest.approx(better.mean())
    assert tests["p"]["ls"] == pytest.approx(min(1, 3 * wilcoxon(better).pvalue))  # the smallest p of three
    assert tests["p"]["fl"] == pytest.approx(min(1, 2 * wilcoxon(mixed).pvalue))
    assert tests["p"]["same"] == 1
    assert (tests["p"] <= 1).all()


def test_paired_tests_refuse_what_is_not_paired():
    table = patients(ls=np.zeros(12))
    with pytest.raises(ValueError, match="reference: got 'svls', expected one of ce, ls"):
        paired_tests(table, "svls", ["ece"])
    with pytest.raises(ValueError, match="judged on different subjects"):
        paired_tests(table[(table["loss"] == "ce") | (table["subject"] != "p00")], metrics=["ece"])


@pytest.mark.parametrize("group", ["DCM", None])  # data without groups too
def test_per_subject_is_the_mean_of_its_cases(group):
    rows = [
        {
            "loss": "ce",
            "model": "unet",
            "train_patients": 56,
            "seed": 0,
            "weights": "last",
            "subject": "patient001",
            "group": group,
            "dsc": dsc,
        }
        | {f"{prefix}{name}": dsc / 2 for prefix in ("", "scaled_") for name in TESTED[1:]}
        for dsc in (0.9, 0.7)
    ]
    (row,) = per_subject(pd.DataFrame(rows)).to_dict("records")
    assert row["dsc"] == pytest.approx(0.8)
    assert row["scaled_nll"] == pytest.approx(0.4)


def test_report_says_what_is_missing(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "study")]) == 2
    assert "results.csv: missing, expected the output of `python -m mbls merge`" in capsys.readouterr().err


@pytest.fixture(scope="module")
def recorded():
    return pd.read_csv(f"{RECORDED}.csv"), pd.read_csv(f"{RECORDED}_subjects.csv")


def test_recorded_tables_are_what_the_recorded_rows_give(recorded):
    text = RECORDED.with_suffix(".md").read_text()
    assert study_report(*recorded, REDUCED) == text
    # Every table names its protocol.
    lines = text.splitlines()
    tables = [i for i, line in enumerate(lines) if line.startswith("| ---")]
    assert all(REDUCED.label in lines[i - 3] for i in tables[1:])


def test_recorded_rows_are_of_the_study_each_once(recorded):
    table, patients = recorded
    keys = ["loss", "model", "train_patients", "seed"]
    planned = {(run.loss, run.model, run.train_patients or 56, run.fit.seed) for run in study(REDUCED)}
    rows = list(zip(*(table[name] for name in [*keys, "weights"]), strict=True))
    assert len(set(rows)) == len(rows)
    assert {row[:-1] for row in rows} <= planned
    assert len(rows) == 2 * len({row[:-1] for row in rows})  # the last weights and the best
    assert table[list(RANKED)].notna().all().all()
    assert len(patients) == 16 * len(table) / 2
    assert set(patients["weights"]) == {"last"}


def test_recorded_pictures_tables_and_curves_are_small_and_of_the_rows(recorded):
    assert sum(path.stat().st_size for path in RECORDED.parent.iterdir()) < 3_000_000
    table, _ = recorded
    last = table[(table["weights"] == "last") & (table["model"] == "unet") & (table["train_patients"] == 56)]
    curves = pd.read_csv(f"{RECORDED}_curves.csv")
    assert set(curves["epoch"]) == set(range(5, 101, 5))
    assert set(zip(curves["loss"], curves["seed"], strict=True)) == set(zip(last["loss"], last["seed"], strict=True))
    bins = pd.read_csv(f"{RECORDED}_bins.csv")
    for (loss, seed), run in bins[bins["region"] == "foreground"].groupby(["loss", "seed"]):
        pooled = run.groupby("bin")[["count", "prob_sum", "hit_sum"]].sum()
        ece = (pooled["prob_sum"] - pooled["hit_sum"]).abs().sum() / pooled["count"].sum()
        (row,) = last[(last["loss"] == loss) & (last["seed"] == seed)].to_dict("records")
        assert ece == pytest.approx(row["pooled_ece_fg"], abs=1e-5)


def test_short_table_has_the_scaled_cross_entropy(recorded):
    table, _ = recorded
    short = short_table(table, REDUCED)
    assert list(short.columns) == ["DSC", "ECE", "ECE, foreground", "NLL", "mean distance"]
    last = table[(table["weights"] == "last") & (table["loss"] == "ce") & (table["train_patients"] == 56)]
    last = last[last["model"] == "unet"]
    assert short.loc["CE, temperature-scaled", "ECE"].startswith(f"{last['scaled_ece'].mean():.4f}")
    assert short.loc["CE", "DSC"].startswith(f"{last['dsc'].mean():.3f}")


def test_a_table_in_words_names_losses_and_metrics():
    index = pd.MultiIndex.from_product([["ce", "svls:sigma=2"], ["best", "last"]], names=["loss", "weights"])
    table = pd.DataFrame({"val_dsc": 0.5, "scaled_ece_fg": 0.25, "temperature": 1.5}, index=index)
    shown = in_words(table)
    assert list(shown.columns) == ["DSC", "ECE, foreground, scaled", "T"]
    assert shown.loc[("SVLS σ = 2", "last")].tolist() == ["0.500", "0.2500", "1.50"]
    with pytest.raises(ValueError, match="colour"):
        in_words(pd.DataFrame({"colour": [1.0]}))


def test_every_loss_of_the_study_has_a_name():
    names = [label(run.loss) for run in study(REDUCED, [0], ["losses", "margins", "weights"])]
    assert len(set(names)) == len(names)


def test_every_network_of_the_study_has_a_name(recorded):
    """The table of backbones names networks in words, whether they were trained or not."""
    table, patients = recorded
    ce = table[(table["loss"] == "ce") & (table["train_patients"] == 56) & (table["seed"] == 0)]
    ce = ce[ce["model"] == "unet"]
    networks = dict.fromkeys(run.model for run in study(REDUCED, [0], ["losses", "backbones"]))
    text = study_report(pd.concat([ce.assign(model=name) for name in networks]), patients.iloc[:0], REDUCED)
    lines = text[text.index("## Backbones") :].splitlines()
    assert [line.split(" | ")[0] for line in lines if " | CE |" in line][:4] == [
        "| U-Net",
        "| attention U-Net",
        "| U-Net++",
        "| Swin UNETR",
    ]


def test_a_report_keeps_the_runs_recorded_before(tmp_path):
    """Two reports into one place, of different seeds; the second adds to the first, and repeats nothing."""
    for seed in (0, 1):
        folder = tmp_path / f"merged{seed}"
        folder.mkdir()
        for name, source in {"results": "", "cases": None, "curves": "_curves", "subject_bins": "_bins"}.items():
            table = pd.read_csv(f"{RECORDED}{'_subjects' if source is None else source}.csv")
            table[(table["seed"] == seed) & (table["loss"].isin(["ce", "ls"]))].to_csv(folder / f"{name}.csv")
    for seed in (0, 1, 1):
        write_report(tmp_path / f"merged{seed}", tmp_path / "out" / "study", REDUCED)
    rows = pd.read_csv(tmp_path / "out" / "study.csv")
    assert set(rows["seed"]) == {0, 1}
    assert not rows.duplicated(["loss", "model", "train_patients", "seed", "weights"]).any()
    expected = pd.read_csv(f"{RECORDED}.csv")
    expected = expected[expected["loss"].isin(["ce", "ls"]) & expected["seed"].isin([0, 1])]
    assert len(rows) == len(expected)


def test_a_report_of_other_networks_leaves_the_curves_as_they_were(tmp_path):
    """Only the U-Net's curves are recorded; a column that came later would be an empty one there."""
    for name, source in {"results": "", "cases": "_subjects", "curves": "_curves", "subject_bins": "_bins"}.items():
        table = pd.read_csv(f"{RECORDED}{source}.csv")
        table[(table["seed"] == 0) & (table["loss"] == "ce")].to_csv(tmp_path / f"{name}.csv", index=False)
    write_report(tmp_path, tmp_path / "study", REDUCED)
    before = {end: (tmp_path / f"study_{end}.csv").read_bytes() for end in ("curves", "bins")}
    for name in ("results", "cases", "curves", "subject_bins"):
        table = pd.read_csv(tmp_path / f"{name}.csv").assign(model="unet++")
        if name == "curves":
            table = table.rename(columns={"val_brier": "val_new"})
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    write_report(tmp_path, tmp_path / "study", REDUCED)
    assert set(pd.read_csv(tmp_path / "study.csv")["model"]) >= {"unet", "unet++"}
    assert before == {end: (tmp_path / f"study_{end}.csv").read_bytes() for end in before}


def test_a_report_of_one_part_leaves_out_the_pictures_of_the_others(tmp_path):
    for name, source in {"results": "", "cases": "_subjects", "curves": "_curves", "subject_bins": "_bins"}.items():
        table = pd.read_csv(f"{RECORDED}{source}.csv")
        table[(table["seed"] == 0) & (table["train_patients"] == 20)].to_csv(tmp_path / f"{name}.csv")
    written = {path.name for path in write_report(tmp_path, tmp_path / "few", REDUCED)}
    assert {"few.csv", "few.md"} <= written
    assert not any(name.endswith(("_curves.png", "_forest.png", "_reliability.png")) for name in written)
