"""environment.yml and constraints.txt agree with pyproject.toml; what an extra is missing; no machine is named."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
#: PyPI's name -> conda-forge's, where they differ.
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def requirements(without=()):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name not in without}
    listed = project["dependencies"] + [line for lines in extras.values() for line in lines]
    return [Requirement(line) for line in listed]


def conda_packages():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    lines = [line for line in dependencies if isinstance(line, str)]
    lines += [
        line for part in dependencies if isinstance(part, dict) for line in part["pip"] if not line.startswith("-")
    ]
    return {requirement.name: requirement.specifier for requirement in map(Requirement, lines)}


# The peers are compared with in an environment of their own (make peers): the course needs none of them.
@pytest.mark.parametrize("requirement", requirements(without=["peers"]), ids=str)
def test_environment_has_every_requirement_in_the_same_range(requirement):
    packages = conda_packages()
    name = CONDA_NAMES.get(requirement.name, requirement.name)
    if requirement.marker is not None and name not in packages:
        pytest.skip(f"only for {requirement.marker}")
    assert name in packages
    assert packages[name] == requirement.specifier


def test_environment_has_the_same_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert conda_packages()["python"] == SpecifierSet(project["requires-python"])


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_constraints_pin_every_requirement_inside_its_range(requirement):
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    if requirement.marker is not None and requirement.name not in pins:
        pytest.skip(f"only for {requirement.marker}")
    assert pins[requirement.name] in requirement.specifier


def test_pip_accepts_the_list_that_conda_gives_it(tmp_path):
    """conda writes the lines below pip: into a requirements file, where options such as --no-deps are errors."""
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (lines,) = (part["pip"] for part in dependencies if isinstance(part, dict))
    assert "-e ." in lines
    path = tmp_path / "requirements.txt"
    path.write_text("\n".join(lines))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "-r", str(path)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_binder_gets_the_same_environment():
    """But for the package itself, which Binder's postBuild installs; its Python is one, and torch without CUDA."""
    wanted = (ROOT / "environment.yml").read_text().replace("      - -e .\n", "")
    wanted = wanted.replace("python>=3.11", "python=3.11").replace("pytorch>=2.4", "pytorch >=2.4 cpu*")
    assert yaml.safe_load((ROOT / ".binder" / "environment.yml").read_text()) == yaml.safe_load(wanted)
    build = ROOT / ".binder" / "postBuild"
    assert build.stat().st_mode & 0o111
    assert "pip install --no-deps -e ." in build.read_text()


def test_modules_that_need_the_course_extra_say_how_to_install_it():
    """Every module is loaded where none of the extra's libraries can be; each loads, or names its extra."""
    code = """
import importlib, pkgutil, sys
import mbls

class Missing:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("IPython", "ipykernel", "ipywidgets", "jupyterlab", "traitlets"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def attempt(name, load, *arguments):
    try:
        load(*arguments)
    except ImportError as error:
        print(name, error, sep=": ")

sys.meta_path.insert(0, Missing)
for module in pkgutil.walk_packages(mbls.__path__, "mbls."):
    attempt(module.name, importlib.import_module, module.name)
from mbls import plots
print(plots.show(plots.new_figure(data=None)[0], "shown without IPython"))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    *lines, shown = finished.stdout.splitlines()
    assert shown == "Picture: shown without IPython"
    refused = dict(line.split(": ", 1) for line in lines)
    assert {"mbls.course.explorer", "mbls.course.explorers", "mbls.course.predictions"} <= set(refused)
    for name, told in refused.items():
        extra = "peers" if name.startswith("mbls.adapters.") else "course"
        assert f"pip install 'mbls[{extra}]'" in told, name


def test_no_absolute_paths_in_what_is_committed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    home = re.compile(r"(?<![\w.$/])/(?:home|root|Users|work)/\w+")
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix not in (".png",):
            found += [f"{name}: {match}" for match in home.findall(path.read_text(errors="ignore"))]
    assert found == []
