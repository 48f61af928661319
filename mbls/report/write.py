"""Write what was judged: tables as CSV, the page, its pictures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mbls.files import write_table
from mbls.report.page import write_page
from mbls.report.run import Judged
from mbls.report.tables import Tables, make_tables

__all__ = ["write_report"]


def write_report(judged: Judged) -> tuple[Tables, list[Path]]:
    """Write ``report.html``, its pictures and the tables into the folder of what was judged.

    Args:
        judged: from :func:`mbls.report.judge_folder`.

    Returns:
        The tables, and the files that were written, the page first.

    Raises:
        ValueError: no case was judged.
    """
    tables = make_tables(judged)
    paths = [write_page(judged, tables, judged.folder / "report.html")]
    problems = pd.DataFrame(list(judged.problems), columns=["case", "problem"])
    for name, table in {**vars(tables), "problems": problems}.items():
        paths.append(judged.folder / f"{name}.csv")
        write_table(table, paths[-1])
    return tables, paths
