"""What the README shows runs: its Python from top to bottom, its commands through the parser, its names and links."""

import pkgutil
import re
import shlex
from pathlib import Path

import pytest

from mbls.__main__ import _parser

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "tests/README.md")]
TEXTS.append(ROOT / "data" / "results" / "README.md")


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks in one language, "" for those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for name, code in found if name == language]


def commands(text: str) -> list[str]:
    """What follows ``python -m mbls``, ``mbls`` or ``"$(which mbls)"`` in the blocks of a text, line by line."""
    lines = "\n".join(blocks(text)).replace("\\\n", " ").splitlines()
    steps = [step.strip() for line in lines for step in line.split("&&")]
    found = [re.match(r'(?:python -m mbls|mbls|fabric run .*"\$\(which mbls\)") (.*)', step) for step in steps]
    return [match[1] for match in found if match]


ALL_COMMANDS = [
    pytest.param(command, id=f"{path.relative_to(ROOT)}: {command[:40]}")
    for path in TEXTS
    for command in commands(path.read_text())
]


def test_python_runs_from_top_to_bottom(phantom_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MBLS_DATA", str(phantom_root))
    monkeypatch.chdir(tmp_path)
    code = blocks((ROOT / "README.md").read_text(), "python")
    assert len(code) >= 2
    names = {"__name__": "readme"}
    for block in code:
        exec(compile(block, "README.md", "exec"), names)
    assert capsys.readouterr().out.count("\n") >= 2


def test_commands_are_found():
    found = [param.values[0].split()[0] for param in ALL_COMMANDS]
    assert {"phantom", "download", "check", "train", "compare", "study", "merge", "report"} <= set(found)
    assert found.count("train") >= 3  # two of them under `fabric run`


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_the_parser_takes_every_command(command):
    """A shell's variable stands for a number (the shards of a job array); ROOT and the like are taken as paths."""
    words = shlex.split(re.sub(r"\$\w+", "1", command), comments=True)
    assert _parser().parse_args(words).command == words[0]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_links_lead_somewhere(path):
    text = path.read_text()
    for name in re.findall(r"`(mbls(?:\.\w+)+)", text):
        pkgutil.resolve_name(name)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (path.parent / target).exists(), target


def test_short_table_is_the_reports():
    """The README's table of the study is the one that `report` wrote."""
    report = (ROOT / "data" / "results" / "acdc_reduced.md").read_text()
    (table,) = re.findall(r"^## In short\n\n.*?\n\n(.*?)\n\n", report, re.MULTILINE | re.DOTALL)
    assert "CE, temperature-scaled" in table
    assert table in (ROOT / "README.md").read_text()
