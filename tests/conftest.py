"""Where the real ACDC volumes are, small data sets that several tests share, and quiet progress bars."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from mbls.data.layout import read_dataset
from mbls.data.phantom import make_phantom

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(2)
# No test is timed: the first example of a property may have to wait for an import or a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def acdc_root() -> Path:
    """The real volumes: $MBLS_ACDC, or shared/acdc beside the checkout."""
    root = Path(os.environ.get("MBLS_ACDC") or Path(__file__).resolve().parents[2] / "shared" / "acdc")
    if not root.is_dir():
        pytest.skip("the real ACDC volumes are not here (set MBLS_ACDC)")
    return root


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory) -> Path:
    """A phantom of one patient a group."""
    return make_phantom(tmp_path_factory.mktemp("data") / "phantom", num_patients=5, seed=3)


@pytest.fixture(scope="session")
def phantom(phantom_root):
    return read_dataset(phantom_root)


@pytest.fixture(scope="session")
def site():
    """The built site, with the stored pictures in the place of the notebooks' explorers, which take minutes."""
    pytest.importorskip("sphinx", reason="Sphinx is not installed (pip install -e '.[site]')")
    command = [sys.executable, str(ROOT / "site" / "build.py"), "--quick"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr
    return ROOT / "site" / "_build" / "html"
