"""The report as one page: it needs no network, and can be printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

import mbls
from mbls import plots
from mbls.engine.judge import ENDINGS, METRICS
from mbls.files import atomic_write, write_text
from mbls.metrics import Region
from mbls.report.cases import JudgedCase
from mbls.report.figures import (
    class_reliability_figure,
    distance_figure,
    heat_map_figure,
    reliability_figure,
    risk_figure,
    scaling_figure,
    volume_figure,
    worst_case_figure,
)
from mbls.report.run import Judged
from mbls.report.tables import Tables
from mbls.statistics import FEW_SUBJECTS

__all__ = ["write_page"]

#: So many cases with the lowest DSC are shown.
_WORST = 6
#: So many problems are listed; the others are in the table.
_LISTED = 20
#: In the order of the page.
_PICTURES = ("reliability", "by_class", "heat_map", "distance", "risk_curve", "volume_plot", "scaling")
_ENDINGS = {"image/svg+xml": "svg", "image/webp": "webp"}


def write_page(judged: Judged, tables: Tables, path: str | Path) -> Path:
    """Write the report as one HTML file with its pictures in it, and these into a folder ``pictures`` beside it.

    Args:
        judged: from :func:`mbls.report.judge_folder`.
        tables: from :func:`mbls.report.make_tables`.
        path: the file.

    Returns:
        The file.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mbls.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    path = Path(path)
    with rc_context({"text.parse_math": False}):  # a dollar in a name is no TeX
        content, pictures = _content(judged, tables), _pictures(judged, tables)
    shown = {name: pictures[name].html if name in pictures else "" for name in _PICTURES}
    text = environment.get_template("page.html.j2").render(**content, pictures=shown)
    write_text(text, path)
    folder = path.parent / "pictures"
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        with atomic_write(folder / f"{name}.{_ENDINGS[picture.kind]}") as part:
            part.write_bytes(picture.content)
    return path


def _content(judged: Judged, tables: Tables) -> dict[str, Any]:
    cases: Any = tables.cases
    data, names = judged.name, judged.class_names
    scaled = judged.fitted is not None
    return {
        "data": data,
        "version": mbls.__version__,
        "told": judged.told,
        "class_names": names,
        "cases": len(cases),
        "subjects": cases["subject"].nunique(),
        "few_subjects": cases["subject"].nunique() < FEW_SUBJECTS,
        "floored": int(cases["floored"].sum()),
        "floored_cases": int((cases["floored"] > 0).sum()),
        "failed": judged.failed,
        "problems": judged.problems[:_LISTED],
        "more_problems": max(len(judged.problems) - _LISTED, 0),
        "temperature": judged.fitted.temperature if judged.fitted else None,
        "fit_cases": judged.fitted.cases if judged.fitted else 0,
        "headline": _headline(tables),
        "regions": list(ENDINGS),
        "metrics": _metric_rows(tables.summary, "as given"),
        "scaled_metrics": _metric_rows(tables.summary, "scaled") if scaled else [],
        "volumes": tables.volumes.to_dict("records"),
        "has_conformal": "conformal_coverage" in tables.volumes,
        "unit": tables.volumes["unit"].iloc[0],
        "risk": _risk(tables.risk),
        "worst": _worst(judged, cases, data),
        "heat_region": _heat_region(tables),
    }


def _heat_region(tables: Tables) -> Region:
    return "boundary" if any(tables.cases["voxels_boundary"]) else "all"


def _pictures(judged: Judged, tables: Tables) -> dict[str, plots.Picture]:
    """Those that there is something to show in."""
    data, names = judged.name, judged.class_names
    drawn: dict[str, tuple[Figure, str]] = {
        "reliability": (
            reliability_figure(tables, data),
            "Reliability diagrams of the winning class, one a region: accuracy over confidence, with intervals",
        ),
        "by_class": (
            class_reliability_figure(tables, data, names),
            f"Reliability diagrams of the probabilities of {', '.join(names)}",
        ),
        "heat_map": (
            heat_map_figure(tables, data, _heat_region(tables)),
            "Confidence minus accuracy in each bin of confidence, a row a case, the most overconfident first",
        ),
        "volume_plot": (
            volume_figure(tables, data, names),
            "Expected over true volume of each structure, with intervals",
        ),
    }
    if len(tables.distances):
        drawn["distance"] = (
            distance_figure(tables, data),
            "Mean confidence and accuracy over the signed distance to the true boundary",
        )
    if len(tables.risk):
        drawn["risk_curve"] = (
            risk_figure(tables, data),
            "Mean 1 - DSC of the cases kept over their share, in the network's order, the best and a random one",
        )
    if judged.fitted is not None:
        drawn["scaling"] = (
            scaling_figure(tables, data, judged.fitted.temperature),
            "Reliability diagrams as given and after one temperature, a column a region",
        )
    return {name: plots.show(figure, alt) for name, (figure, alt) in drawn.items()}


def _row(summary: pd.DataFrame, metric: str, region: str, stage: str, over: str = "cases") -> Any:
    which = (summary["metric"] == metric) & (summary["region"] == region)
    found = summary.loc[which & (summary["stage"] == stage) & (summary["over"] == over)]
    return found.iloc[0] if len(found) else None


def _metric_rows(summary: pd.DataFrame, stage: str) -> list[dict[str, Any]]:
    """A row a metric: its title, which direction is good, and a cell for each region."""
    rows = []
    for name, metric in METRICS.items():
        regions = [""] if metric.function is None else list(ENDINGS)
        cells = [_row(summary, name, region, stage) for region in regions]
        if any(cell is not None for cell in cells):
            texts = [_text(cell, metric.digits) for cell in cells] + [None] * (len(ENDINGS) - len(cells))
            rows.append({"title": metric.title, "better": metric.better, "cells": texts})
    return rows


def _text(cell: Any, digits: int) -> tuple[str, str] | None:
    """Mean and interval as text; None where there is nothing."""
    if cell is None or not np.isfinite(cell["mean"]):
        return None
    return f"{cell['mean']:.{digits}f}", f"{cell['low']:.{digits}f} to {cell['high']:.{digits}f}"


def _headline(tables: Tables) -> str:
    """Whether the network claims too much, on average and bin by bin, in a sentence."""
    rows = [_row(tables.summary, name, "all", "as given") for name in ("overconfidence", "ece")]
    if any(row is None or not np.isfinite(row["mean"]) for row in rows):
        return ""
    mean, low, high = (rows[0][part] for part in ("mean", "low", "high"))
    found = "claims too much" if low > 0 else "claims too little" if high < 0 else "is about right on average"
    return (
        f"Over all voxels the network {found}: its mean confidence minus its accuracy is {mean:.4f} "
        f"(95 % interval {low:.4f} to {high:.4f}). Bin by bin the two differ by {rows[1]['mean']:.4f} (ECE)."
    )


def _risk(risk: Any) -> dict[str, float] | None:
    if not len(risk):
        return None
    most = risk.iloc[int(np.ceil(0.8 * len(risk))) - 1]
    areas = {name: float(risk[name].mean()) for name in ("risk", "random", "best")}
    return areas | {"kept": int(most["kept"]), "at_80": float(most["risk"]), "all": float(risk["risk"].iloc[-1])}


def _worst(judged: Judged, cases: pd.DataFrame, data: str) -> list[dict[str, Any]]:
    """The cases of the lowest DSC; those without one come last."""
    order = cases.sort_values(["dsc", "ece"], ascending=[True, False], kind="stable", na_position="last")
    chosen = order["case"].tolist()[:_WORST]
    found: dict[str, JudgedCase] = {one.row["case"]: one for one in judged if one.row["case"] in chosen}
    return [_told(found[case], data, judged.class_names) for case in chosen]


def _told(one: JudgedCase, data: str, class_names: Sequence[str]) -> dict[str, Any]:
    row, alt = one.row, f"Labels, prediction and confidence in what is wrong, in one slice of {one.row['case']}"
    picture = plots.show(worst_case_figure(one, data, class_names), alt).html
    told = {name: row[name] for name in ("case", "dsc", "ece", "ece_fg", "expected_dsc")}
    return told | {"slice": one.picture_slice, "picture": picture}
