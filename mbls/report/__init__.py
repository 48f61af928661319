"""Judge predictions that any program wrote, and report: tidy tables, pictures, and a page that needs no network."""

from mbls.report.run import Judged, is_judged, judge_folder, merge_judged, read_judged
from mbls.report.tables import Tables, make_tables
from mbls.report.write import write_report

__all__ = [
    "Judged",
    "Tables",
    "is_judged",
    "judge_folder",
    "make_tables",
    "merge_judged",
    "read_judged",
    "write_report",
]
