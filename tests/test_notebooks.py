"""What a notebook must be, whatever it says; that its outputs still come out is checked by nbval (make test)."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(path for path in ROOT.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text(notebook, kind):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == kind)


def test_ran_from_top_to_bottom_without_error_or_warning(notebook):
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert [output for output in outputs(notebook) if output.output_type == "error" or output.get("name") == "stderr"] == []


def test_outputs_are_small_and_name_no_machine(notebook):
    for output in outputs(notebook):
        assert len(str(output)) < 200_000
        assert not re.search(r"(?<![\w.])/(?:home|root|Users|work|tmp)/", str(output.get("text", "")))
    assert len(nbformat.writes(notebook)) < 1_500_000


def test_pictures_have_alt_text(notebook):
    pictures = [output for output in outputs(notebook) if "image/png" in output.get("data", {})]
    assert all(len(output.metadata.get("image/png", output.metadata).get("alt", "")) > 20 for output in pictures)


def test_reads_like_a_lesson(notebook):
    prose = text(notebook, "markdown")
    assert re.match(r"# .*\?", prose), "the title is a question"
    for part in ("You will be able to", "Predict first", "## Takeaways", "**References.**", "minute"):
        assert part in prose, part
    assert all(cell.source.count("\n") < 15 for cell in notebook.cells if cell.cell_type == "code")


def test_links_between_files_lead_somewhere(notebook):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text(notebook, "markdown")):
        assert (ROOT / target).exists(), target


def run_nbval(path):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env", str(path)]
    return subprocess.run(command, capture_output=True, text=True, cwd=path.parent, timeout=300)


def test_nbval_catches_a_changed_number(tmp_path):
    """The check itself is checked: a copy of a notebook with one altered output must fail, and only there."""
    source = nbformat.read(ROOT / "00_start_here.ipynb", as_version=4)
    # The cell about confidences at the margin needs no data: keep it and its import.
    keep = [cell for cell in source.cells if "confidence_at_margin(margin" in cell.source]
    assert len(keep) == 1
    keep[0].source = "from mbls.constraints import confidence_at_margin\n" + keep[0].source
    source.cells = keep
    path = tmp_path / "copy.ipynb"
    nbformat.write(source, path)
    assert run_nbval(path).returncode == 0
    altered = path.read_text()
    assert altered.count("0.87005") == 1
    path.write_text(altered.replace("0.87005", "0.87006"))
    failed = run_nbval(path)
    assert failed.returncode == 1
    assert "0.87006" in failed.stdout
