"""Tidy tables of judged cases: a row a case; a case and class; a bin; and what they come to, with intervals."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from mbls.engine.judge import ENDINGS, METRICS, SCALED, metric_of
from mbls.engine.structures import SHELLS
from mbls.metrics import CalibrationBins
from mbls.report.calibrate import Fitted
from mbls.report.run import Judged
from mbls.statistics import bootstrap_interval, conformal_quantile, risk_coverage

__all__ = ["LEVEL", "WINNER", "Tables", "make_tables"]

#: In tables of bins: the class that wins, whichever it is.
WINNER = "the winner"
#: Of all intervals.
LEVEL = 0.95
#: With fewer validation cases no conformal interval is given.
_CALIBRATION_CASES = 20


@dataclass(frozen=True)
class Tables:
    """Everything that a report tells, as tables.

    Attributes:
        cases: a row a case: metrics by region (``_fg``, ``_boundary``), after the temperature as ``scaled_``.
        classes: a row a case and class: overlap, volumes with their intervals, class-wise calibration.
        bins: a row a case, region, class and bin that is not empty: count, prob_sum, hit_sum.
        distances: a row a case and shell around the true boundary: count, confidence_sum, hit_sum.
        summary: a row a metric, region and stage: mean over the cases, or over all voxels, and its interval.
        volumes: a row a structure: how far predicted volumes lie off, and how many intervals hold the true one.
        risk: a row a number of kept cases: mean 1 - DSC in the network's order, in a random one, in the best one.
    """

    cases: pd.DataFrame
    classes: pd.DataFrame
    bins: pd.DataFrame
    distances: pd.DataFrame
    summary: pd.DataFrame
    volumes: pd.DataFrame
    risk: pd.DataFrame


def make_tables(judged: Judged) -> Tables:
    """All tables of judged cases.

    Raises:
        ValueError: no case was judged.
    """
    cases, classes, bins, distances = [], [], [], []
    counts: dict[str, list[np.ndarray]] = {}
    names = judged.class_names
    for one in judged:
        row = one.row
        who = {"case": row["case"], "subject": row["subject"]}
        split = {name: _class_of(name, names) for name in row}
        cases.append({name: row[name] for name, (_, label) in split.items() if label is None})
        for label in names:
            own = {base: row[name] for name, (base, owner) in split.items() if owner == label}
            volume = next((part for part in one.structures if part["class"] == label), {})
            classes.append(who | {"class": label} | own | {k: v for k, v in volume.items() if k not in who})
        for key, (part,) in one.judgement.case_bins.items():
            table = torch.stack([*part.state_dict().values()]).numpy()
            counts.setdefault(key, []).append(table)
            bins.append(_bins_table(who | {"region": key}, table, names))
        shells = {"count": one.shells[:, 0].astype(int), "confidence_sum": one.shells[:, 1]}
        shells |= {"hit_sum": one.shells[:, 2].astype(int)}
        distances.append(pd.DataFrame({**who, "low_mm": SHELLS[:-1], "high_mm": SHELLS[1:], **shells}))
    if not cases:
        raise ValueError(f"{judged.folder}: got no case that could be judged, expected at least one")
    case_table, class_table = pd.DataFrame(cases), _with_intervals(pd.DataFrame(classes), judged.fitted)
    together: Any = pd.concat(distances, ignore_index=True)
    return Tables(
        case_table,
        class_table,
        pd.concat(bins, ignore_index=True),
        together[together["count"] > 0].reset_index(drop=True),
        _summary(case_table, counts, names),
        _volumes(class_table, names),
        _risk(case_table),
    )


def _class_of(name: str, class_names: Sequence[str]) -> tuple[str, str | None]:
    """A column of a row without its class, and the class; None where it has none."""
    for label in sorted(class_names, key=len, reverse=True):
        base = name.removesuffix(f"_{label}")
        if base != name:
            try:
                metric_of(base)
            except ValueError:
                continue
            return base, label
    return name, None


def _bins_table(who: dict[str, Any], table: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    count, prob_sum, hit_sum = table
    row, place = np.nonzero(count)
    edges = np.linspace(0, 1, count.shape[1] + 1)
    found = {"class": np.array([WINNER, *names])[row], "bin": place, "low": edges[place], "high": edges[place + 1]}
    found |= {"count": count[row, place].astype(int), "prob_sum": prob_sum[row, place]}
    return pd.DataFrame({**who, **found, "hit_sum": hit_sum[row, place].astype(int)})


def _over_subjects(subjects: Any, values: np.ndarray, statistic: Callable[[np.ndarray], Any]) -> tuple[Any, Any]:
    """The bootstrap interval of a statistic of the cases' sums, with all cases of a subject drawn together."""
    _, place = np.unique(subjects.astype(str), return_inverse=True)
    summed = np.zeros((place.max() + 1, *values.shape[1:]))
    np.add.at(summed, place, values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few subjects: the report says how many
        return bootstrap_interval(summed, statistic, level=LEVEL)


def _summary(cases: pd.DataFrame, counts: dict[str, list[np.ndarray]], names: Sequence[str]) -> pd.DataFrame:
    found = []
    columns = [name for name in cases if name.startswith(SCALED) or name.removesuffix(_ending(name)) in METRICS]
    values = cases[columns].to_numpy(float)
    known = np.isfinite(values)
    sums = np.stack([np.where(known, values, 0), known.astype(float)], 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = _over_subjects(cases["subject"], sums, _mean_of_sums)
        means = _mean_of_sums(sums)
    for column, mean, bottom, top in zip(columns, means, low, high, strict=True):
        region, metric = metric_of(column)
        region = "" if metric.function is None else region
        ends = {"mean": mean, "low": bottom, "high": top}
        name = column.removeprefix(SCALED).removesuffix(ENDINGS[region] if region else "")
        stage = "scaled" if column.startswith(SCALED) else "as given"
        found.append({"metric": name, "title": metric.title, "over": "cases", "region": region, "stage": stage} | ends)
    for key, tables in counts.items():
        stage, region = ("scaled", key.removeprefix(SCALED)) if key.startswith(SCALED) else ("as given", key)
        stacked = np.stack(tables)
        if not stacked[:, 0, 0].any():
            continue
        for name in ("ece", "cece", "ace", "mce"):
            statistic = functools.partial(_pooled, name)
            bottom, top = _over_subjects(cases["subject"], stacked, statistic)
            ends = {"mean": statistic(stacked), "low": bottom, "high": top}
            title = f"{name.upper()}, all voxels pooled"
            found.append({"metric": name, "title": title, "over": "voxels", "region": region, "stage": stage} | ends)
    return pd.DataFrame(found)


def _ending(name: str) -> str:
    return next((end for end in ENDINGS.values() if end and name.endswith(end)), "")


def _mean_of_sums(sums: np.ndarray) -> np.ndarray:
    total, number = sums.sum(0)
    return total / number


def _pooled(name: str, tables: np.ndarray) -> float:
    """A figure of :class:`mbls.metrics.CalibrationBins` over the counts of several cases (cases, 3, K + 1, bins)."""
    whole = tables.sum(0)
    if not whole[0, 0].any():
        return float("nan")
    bins = CalibrationBins(whole.shape[1] - 1, whole.shape[2])
    bins.load_state_dict(dict(zip(bins.state_dict(), map(torch.from_numpy, whole), strict=True)))
    return getattr(bins, name)()


def _with_intervals(classes: Any, fitted: Fitted | None) -> pd.DataFrame:
    """Volumes in ml where every case's spacing is known, else in voxels; the naive and the conformal interval."""
    rows = classes["true"].notna()
    validation = None if fitted is None else pd.DataFrame(fitted.structures)
    known = classes.loc[rows, "voxel_ml"].notna().all()
    unit = "ml" if known else "voxels"
    factor = classes["voxel_ml"] if known else classes["voxel_ml"].where(~rows, 1.0)
    volumes = {f"volume_{name}": classes[name] * factor for name in ("true", "predicted", "expected", "sd")}
    found = classes.drop(columns=["true", "predicted", "expected", "sd"]).assign(**volumes)
    found["volume_unit"] = np.where(rows, unit, "")
    found["naive_low"] = (found["volume_expected"] - 1.96 * found["volume_sd"]).clip(lower=0)
    found["naive_high"] = found["volume_expected"] + 1.96 * found["volume_sd"]
    if validation is not None and fitted is not None and fitted.cases >= _CALIBRATION_CASES:
        scale = validation["voxel_ml"] if known else 1.0
        errors = ((validation["expected"] - validation["true"]) * scale).abs()
        for label in found.loc[rows, "class"].unique():
            own: Any = errors[validation["class"] == label]
            which = found["class"] == label
            if own.notna().all():
                reach = conformal_quantile(own.tolist(), LEVEL)
                found.loc[which, "conformal_low"] = (found.loc[which, "volume_expected"] - reach).clip(lower=0)
                found.loc[which, "conformal_high"] = found.loc[which, "volume_expected"] + reach
    return found


def _volumes(classes: Any, names: Sequence[str]) -> pd.DataFrame:
    found = []
    for label in names[1:]:
        own = classes[classes["class"] == label]
        row: dict[str, Any] = {"class": label, "unit": own["volume_unit"].iloc[0], "cases": len(own)}
        for name in ("predicted", "expected"):
            error = own[f"volume_{name}"] - own["volume_true"]
            by_subject = error.groupby(own["subject"]).mean()
            middle, spread = by_subject.mean(), 1.96 * by_subject.std()
            row |= {f"{name}_bias": error.mean(), f"{name}_low": middle - spread, f"{name}_high": middle + spread}
        for kind in ("naive", "conformal"):
            if f"{kind}_low" in own:
                held = own["volume_true"].between(own[f"{kind}_low"], own[f"{kind}_high"])
                row |= {f"{kind}_coverage": held.mean()}
                row |= {f"{kind}_width": (own[f"{kind}_high"] - own[f"{kind}_low"]).mean()}
        found.append(row)
    return pd.DataFrame(found)


def _risk(cases: Any) -> pd.DataFrame:
    """Over the cases with a DSC; where nothing is predicted the network trusts itself least."""
    known = cases[cases["dsc"].notna()]
    risks = 1 - known["dsc"].to_numpy(float)
    scores = known["expected_dsc"].fillna(0).to_numpy(float)
    kept = np.arange(1, len(risks) + 1)
    return pd.DataFrame(
        {
            "kept": kept,
            "share": kept / max(len(risks), 1),
            "risk": risk_coverage(risks, scores),
            "random": np.full(len(risks), risks.mean() if len(risks) else np.nan),
            "best": risk_coverage(risks, -risks),
        }
    )
