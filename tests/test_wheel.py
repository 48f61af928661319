"""The wheel holds what the package reads, so that the course runs where there is no checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

import mbls
from mbls.data.home import recorded
from mbls.study.paper import PROTOCOLS, study

ROOT = Path(__file__).resolve().parents[1]
RECORDED = [ROOT / "data" / "acdc_split.json", *sorted((ROOT / "data" / "results").glob("*.csv"))]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name)
def test_recorded_finds_the_file_of_the_checkout(path):
    """The package that is run from it; one that is installed has a copy."""
    found = recorded(path.name)
    assert found == path or not Path(mbls.__file__).is_relative_to(ROOT)
    assert found.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["acdc_reductions.csv", "results/acdc_reduced.csv", "README.md", ""])
def test_recorded_says_what_there_is(name):
    with pytest.raises(FileNotFoundError, match=r"name: got '.*', expected one of acdc_paper\.csv, .*acdc_split\.json"):
        recorded(name)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (built,) = folder.glob("mbls-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with the wheel's content alone; what it depends on comes from the environment of the tests."""
    target = tmp_path_factory.mktemp("installed")
    _pip("install", "--no-deps", "--target", str(target), str(wheel))
    return target


@pytest.mark.slow  # builds and installs a wheel, then loads every heavy library in processes of their own
def test_wheel_holds_types_and_tables_and_no_more_than_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "mbls/py.typed" in names
    assert {f"mbls/recorded/{path.name}" for path in RECORDED} | {"mbls/recorded/README.md"} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mbls"}


@pytest.mark.slow  # as above
def test_installed_package_has_its_names_and_its_files(installed, tmp_path):
    names = [path.name for path in RECORDED]
    code = f"""
from pathlib import Path
import mbls
from mbls import CalibrationBins, MbLSLoss
from mbls.data.home import data_home, recorded
target = Path({str(installed)!r})
assert Path(mbls.__file__).is_relative_to(target), mbls.__file__
assert all(recorded(name) == target / "mbls" / "recorded" / name for name in {names})
assert data_home() == Path.cwd() / "data"
from mbls.study import PROTOCOLS
assert all(Path(protocol.base.split).is_file() for protocol in PROTOCOLS.values())
print(MbLSLoss(margin=5.0), CalibrationBins(num_classes=4).num_classes)
"""
    assert _python(installed, tmp_path, "-c", code).startswith("MbLSLoss(")


@pytest.mark.slow  # as above
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_study_knows_its_runs_without_a_checkout(installed, tmp_path, protocol):
    shown = _python(installed, tmp_path, "-m", "mbls", "study", "--protocol", protocol, "--list", "--out", "runs")
    assert shown.splitlines() == [experiment.name for experiment in study(PROTOCOLS[protocol])]


@pytest.mark.slow  # as above
@pytest.mark.parametrize("name", ["05_margin_explorer", "06_train_on_acdc"])
def test_cells_that_read_recorded_tables_run_without_a_checkout(installed, tmp_path, name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    imports, *others = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    reading = [source for source in others if "recorded(" in source]
    assert reading != []
    checks = [source for source in others if "exercise_6_2(" in source]  # reads a table too
    _python(installed, tmp_path, "-c", "\n".join([imports, *reading, *checks]))


def _python(installed: Path, folder: Path, *arguments: str) -> str:
    """What Python prints in a folder outside the checkout, where the installed package comes before any other."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, *arguments]
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
