"""Each block of docs/integrations.md runs by itself; a block whose library is missing is skipped and names it."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from mbls.__main__ import _parser

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "integrations.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
#: What an adapter needs beside MONAI, which is always there.
NEEDED = {"mbls.adapters.torchmetrics": "torchmetrics", "mbls.adapters.nnunet": "nnunetv2"}
# The libraries' own, as they are loaded.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::SyntaxWarning")


def block(word):
    """The only block that has a word."""
    (found,) = [code for _, code in BLOCKS if word in code]
    return found


def libraries(code):
    """The libraries that a block imports."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes]
    return {NEEDED.get(name, name.partition(".")[0]) for name in modules}


def skip_without(names):
    for name in sorted(names):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (pip install -e '.[peers]')")


PYTHON = [pytest.param(code, id=" ".join(sorted(libraries(code)))) for language, code in BLOCKS if language == "python"]


def test_all_blocks_are_found():
    named = set().union(*(libraries(param.values[0]) for param in PYTHON))
    assert {"torch", "monai", "ignite", "torchmetrics", "lightning", "transformers", "nnunetv2"} <= named
    assert [language for language, _ in BLOCKS].count("yaml") == 1


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")
@pytest.mark.parametrize("code", PYTHON)
def test_a_block_runs(code, tmp_path, monkeypatch, capsys):
    skip_without(libraries(code))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, PAGE.name, "exec"), {"__name__": "integrations"})
    if "print(" in code:
        assert re.search(r"\d\.\d", capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []


def test_the_bundle(tmp_path):
    skip_without({"ignite"})
    from monai.bundle import ConfigParser
    from monai.handlers import IgniteMetricHandler

    (tmp_path / "bundle.yaml").write_text(block("_target_"))
    parser = ConfigParser(globals={"monai": "monai"})
    parser.read_config(tmp_path / "bundle.yaml")
    assert parser.get_parsed_content("loss").margin == 5.0
    assert isinstance(parser.get_parsed_content("key_metric")["val_ece"], IgniteMetricHandler)


def test_nnunet_finds_the_trainer(tmp_path, monkeypatch):
    skip_without({"nnunetv2"})
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    (tmp_path / "mbls_trainers.py").write_text(block("import nnUNetTrainerMbLS"))
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert recursive_find_trainer_class_by_name("nnUNetTrainerMbLS_m8").margin == 8.0
    assert recursive_find_trainer_class_by_name("nnUNetTrainerMbLS").margin == 5.0


def test_the_parser_takes_the_command():
    (command,) = re.findall(r"^python -m mbls (.*)$", block("nnUNetv2_train"), re.MULTILINE)
    assert _parser().parse_args(shlex.split(command)).command == "judge"


def test_files_that_the_page_names_are_there():
    named = re.findall(r"`((?:tests/[\w/]+\.py)|constraints\.txt)`", PAGE.read_text())
    assert named
    assert all((ROOT / name).is_file() for name in named)
