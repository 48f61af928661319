"""The layout: what stands at the top is light, each folder says what it offers, and only data/ and course/ know
hearts."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mbls

PACKAGE = Path(mbls.__file__).parent
HEAVY = ("lightning_fabric", "monai", "pandas", "matplotlib", "nibabel")


def test_losses_and_metrics_load_no_heavy_library():
    code = (
        "import sys; from mbls import CalibrationBins, MbLSLoss; "
        f"print(sorted(name for name in {HEAVY} if name in sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


@pytest.mark.parametrize(
    "name", ["mbls", "mbls.course", "mbls.data", "mbls.engine", "mbls.networks", "mbls.report", "mbls.study"]
)
def test_a_folder_offers_what_it_names(name):
    module = importlib.import_module(name)
    assert module.__all__
    assert all(getattr(module, offered) is not None for offered in module.__all__)
    assert not hasattr(module, "nothing_of_this_name")


def test_only_data_and_course_know_the_names_of_structures_and_phases():
    known = re.compile(r"""\b(NUM_CLASSES|CLASS_NAMES)\b|["'](RV|MYO|LV|ED|ES)["']""")
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in ("data", "course")
        for line in path.read_text(encoding="utf-8").splitlines()
        if known.search(line)
    ]
    assert found == []
