"""The benchmarks still run; how fast anything is, they say themselves (make bench)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import judge
from benchmarks.whole_training import efficiency

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow  # every benchmark once, 40 s
def test_quick_run_writes_every_section(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--out", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    results = (tmp_path / "RESULTS.md").read_text()
    recorded = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    assert re.findall(r"^## .*", results, re.MULTILINE) == re.findall(r"^## .*", recorded, re.MULTILINE)
    assert "| **mbls MbLSLoss** |" in results
    assert "nan" not in results
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_judging_is_measured_part_by_part():
    report = judge.report(quick=True)
    assert report.count("\n| ") == 1 + 1 + 6
    assert "nan" not in report


def test_expected_scaling_by_hand():
    """A gradient of 31.25 MB takes a quarter of a second through 1 Gbit/s; two machines send it once, many almost
    twice."""
    assert efficiency(0.75, 31_250_000, 2, 1) == pytest.approx(0.75)
    assert efficiency(0.5, 31_250_000, 10**6, 1) == pytest.approx(0.5, abs=1e-5)
    assert efficiency(0.5, 0, 16, 1) == 1
