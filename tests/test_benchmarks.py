"""The benchmarks still run; how fast anything is, they say themselves (make bench)."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_quick_run_writes_every_section(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--out", str(tmp_path)], cwd=ROOT, check=True, capture_output=True
    )
    results = (tmp_path / "RESULTS.md").read_text()
    recorded = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    assert re.findall(r"^## .*", results, re.MULTILINE) == re.findall(r"^## .*", recorded, re.MULTILINE)
    assert "| **mbls MbLSLoss** |" in results
    assert "nan" not in results
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
