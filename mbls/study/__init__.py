"""Compare losses, margins and networks; the paper's comparison; tidy tables of it."""

from mbls.study.experiment import Experiment, Run, compare, judge_run, load_data, run_experiment, sweep
from mbls.study.paper import PROTOCOLS, Protocol, parts, study
from mbls.study.report import write_report
from mbls.study.results import merge
from mbls.study.tables import study_report

__all__ = [
    "PROTOCOLS",
    "Experiment",
    "Protocol",
    "Run",
    "compare",
    "judge_run",
    "load_data",
    "merge",
    "parts",
    "run_experiment",
    "study",
    "study_report",
    "sweep",
    "write_report",
]
