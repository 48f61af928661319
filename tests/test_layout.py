"""The layout: what stands at the top of the package is light."""

import subprocess
import sys

HEAVY = ("lightning_fabric", "monai", "pandas", "matplotlib", "nibabel")


def test_losses_and_metrics_load_no_heavy_library():
    code = (
        "import sys; from mbls import CalibrationBins, MbLSLoss; "
        f"print(sorted(name for name in {HEAVY} if name in sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
