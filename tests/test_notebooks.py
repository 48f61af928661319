"""What a notebook must be, whatever it says; that its outputs still come out is checked by nbval (make test)."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from mbls.course import exercises

ROOT = Path(__file__).resolve().parents[1] / "notebooks"
LESSONS = sorted(ROOT.glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))
SPEC = importlib.util.spec_from_file_location("install_cell", ROOT / "install_cell.py")
install_cell = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(install_cell)


def name(path):
    return path.stem


@pytest.fixture(params=LESSONS + SOLUTIONS, ids=name)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


@pytest.fixture(params=LESSONS, ids=name)
def lesson(request):
    return nbformat.read(request.param, as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text(notebook, kind):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == kind)


def test_ran_from_top_to_bottom_without_error_or_warning(notebook):
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert [
        output for output in outputs(notebook) if output.output_type == "error" or output.get("name") == "stderr"
    ] == []


def test_outputs_are_small_and_name_no_machine(notebook):
    for output in outputs(notebook):
        assert len(str(output)) < 200_000
        assert not re.search(r"(?<![\w.])/(?:home|root|Users|work|tmp)/", str(output.get("text", "")))
    assert len(nbformat.writes(notebook)) < 1_500_000


def test_pictures_have_alt_text(notebook):
    shown = [output.get("data", {}) for output in outputs(notebook)]
    assert not any(kind.startswith("image/") for data in shown for kind in data), "an img of HTML, by plots.show"
    pictures = re.findall("<img [^>]+>", "\n".join(data.get("text/html", "") for data in shown))
    assert all(len(re.findall(' alt="([^"]*)"', picture)[0]) > 20 for picture in pictures)


def test_code_cells_are_short(notebook):
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    lessons = [
        source for source in code if not source.startswith(("import ", "from "))
    ]  # the import cell may be longer
    assert len(code) - len(lessons) <= 1
    assert [source for source in lessons if source.count("\n") >= 15] == []


def test_the_first_code_cell_installs_what_is_missing(notebook):
    """The same in all notebooks, folded, and on no page; `python notebooks/install_cell.py` writes it."""
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert cell.source == install_cell.source(install_cell.repository())
    assert cell.source.count("\n") < 6
    assert cell.outputs == []
    assert cell.metadata == {"jupyter": {"source_hidden": True}, "tags": ["remove-cell"]}


@pytest.mark.parametrize("address", ["", "https://github.com/owner/course"])
def test_the_first_code_cell_where_the_package_is_missing(address, monkeypatch):
    ran = []

    class Shell:
        def run_line_magic(self, name, line, **_):
            ran.append(f"{name} {line}")

    code = TransformerManager().transform_cell(install_cell.source(address))
    exec(code, {"get_ipython": Shell})
    assert ran == [], "it is installed here"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    if address:
        exec(code, {"get_ipython": Shell})
        assert ran == ['pip install --quiet "ipywidgets>=8.1" git+https://github.com/owner/course']
    else:
        with pytest.raises(ModuleNotFoundError, match=r"README\.md says how to install"):
            exec(code, {"get_ipython": Shell})


def test_the_install_cell_is_written_once_and_numbers_the_others_anew(tmp_path):
    path = tmp_path / "copy.ipynb"
    path.write_bytes(LESSONS[0].read_bytes())
    install_cell.write(path, install_cell.repository())
    assert path.read_bytes() == LESSONS[0].read_bytes()
    install_cell.write(path, "https://github.com/owner/course")
    before, after = (nbformat.read(each, as_version=4) for each in (LESSONS[0], path))
    assert after.cells[1].source == install_cell.source("https://github.com/owner/course")
    assert after.cells[2:] == before.cells[2:]


def test_no_widget_is_stored_without_its_kernel(notebook):
    assert "application/vnd.jupyter.widget-view+json" not in nbformat.writes(notebook)
    assert "widgets" not in notebook.metadata


def test_reads_like_a_lesson(lesson):
    prose = text(lesson, "markdown")
    assert re.match(r"# .*\?", prose), "the title is a question"
    for part in ("You will be able to", "## Exercises", "## Takeaways", "**References.**", "minute"):
        assert part in prose, part


def predictions_of(notebook):
    """Question -> places of its ``ask`` and its ``reveal`` among the cells."""
    places = {}
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            for which, id in re.findall(r'^(ask|reveal)\(\s*"([\d.]+)"', cell.source, re.MULTILINE):
                places.setdefault(id, {})[which] = place
    return places


def test_predictions_are_asked_before_they_are_answered(lesson):
    """Each is revealed after it was asked; what lies between, and the answer itself, is stored folded."""
    places = predictions_of(lesson)
    assert len(places) >= 2
    for id, place in places.items():
        assert lesson.cells[0].source.startswith(f"# 0{id.split('.')[0]} "), id
        assert place["ask"] < place["reveal"], id
        for cell in lesson.cells[place["ask"] + 1 : place["reveal"] + 1]:
            if cell.cell_type == "code" and cell.outputs and not cell.source.startswith("ask("):
                assert cell.metadata.get("jupyter", {}).get("outputs_hidden"), (id, cell.source)
                assert "hide-output" in cell.metadata.get("tags", []), (id, cell.source)


def names(cell, kind):
    tree = ast.parse(TransformerManager().transform_cell(cell.source))
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, kind)}


def test_no_cell_needs_what_a_check_has_assigned(lesson):
    """The site leaves the checks out when it runs a notebook."""
    only_there = set()
    for cell in lesson.cells:
        if cell.cell_type == "code" and "check" in cell.metadata.get("tags", []):
            only_there |= names(cell, ast.Store)
        elif cell.cell_type == "code":
            only_there -= names(cell, ast.Store)
            assert not names(cell, ast.Load) & only_there, cell.source


def test_a_number_asked_for_does_not_stand_above(lesson):
    places = predictions_of(lesson)
    for id, place in places.items():
        shown = lesson.cells[place["reveal"]].outputs[0]["data"]["text/plain"]
        (told,) = re.findall(rf"^Answer to {id}: (.*?)\.(?: |$)", shown)
        number = re.match(r"\d+\.\d+", told)
        if number:
            above = "\n".join(
                cell.source + "".join(str(output.get("text", "")) for output in cell.get("outputs", []))
                for cell in lesson.cells[: place["ask"]]
            )
            assert number[0] not in above, (id, number[0])


def test_there_are_enough_predictions():
    assert sum(len(predictions_of(nbformat.read(path, as_version=4))) for path in LESSONS) >= 28


def asked_in(notebook):
    return re.findall(r"exercises\.(exercise_\w+)\(", text(notebook, "code"))


def test_exercises_ask_for_code_and_for_a_prediction(lesson):
    assert 2 <= len(asked_in(lesson)) <= 4
    prose = text(lesson, "markdown")
    assert "(code)" in prose
    assert "(predict" in prose
    unanswered = [
        output.data["text/plain"] for output in outputs(lesson) if "Not answered yet" in str(output.get("data"))
    ]
    assert len(unanswered) == len(asked_in(lesson)), "exercises are handed out unsolved"


@pytest.mark.parametrize("path", SOLUTIONS, ids=name)
def test_solutions_answer_every_exercise_of_their_lesson(path):
    (lesson,) = (each for each in LESSONS if each.stem[:2] == path.stem[:2])
    solution = nbformat.read(path, as_version=4)
    asked = asked_in(nbformat.read(lesson, as_version=4))
    assert asked_in(solution) == asked
    passed = [
        output for output in outputs(solution) if str(output.get("data", {}).get("text/plain", "")).startswith("✓")
    ]
    assert len(passed) == len(asked)


def test_every_check_belongs_to_a_lesson():
    asked = [exercise for path in LESSONS for exercise in asked_in(nbformat.read(path, as_version=4))]
    assert asked == [each for each in exercises.__all__ if each.startswith("exercise_")]


@pytest.mark.parametrize("path", [*LESSONS, *SOLUTIONS, ROOT / "INSTRUCTORS.md"], ids=name)
def test_links_between_files_lead_somewhere(path):
    prose = path.read_text() if path.suffix == ".md" else text(nbformat.read(path, as_version=4), "markdown")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose):
        assert (path.parent / target).exists(), target


def test_instructors_cite_sections_that_exist():
    """A quiz answer such as (04, "Label smoothing") leads to a heading of that notebook."""
    headings = {
        path.stem[:2]: re.findall(r"^#+ (.*)$", text(nbformat.read(path, 4), "markdown"), re.M) for path in LESSONS
    }
    cited = re.findall(r'\b(0\d), ((?:"[^"]+"(?:, )?\s*)+)', (ROOT / "INSTRUCTORS.md").read_text())
    sections = [(number, section) for number, names in cited for section in re.findall(r'"([^"]+)"', names)]
    assert len(sections) > 5
    for number, section in sections:
        section = " ".join(section.split())
        assert any(section in heading for heading in headings[number]), (number, section)


def run_nbval(path):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--nbval",
        "--nbval-current-env",
        "--nbval-sanitize-with",
        str(ROOT.parent / "tests" / "nbval.cfg"),
        str(path),
    ]
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


def test_nbval_catches_a_changed_number_in_an_explorer(tmp_path):
    """What is stored of a widget is its picture and a line of text; the text is compared."""
    source = nbformat.read(ROOT / "05_margin_explorer.ipynb", as_version=4)
    source.cells = [cell for cell in source.cells if cell.source.startswith("voxel = VoxelExplorer(")]
    assert len(source.cells) == 1
    source.cells[0].source = "from mbls.course.explorers import VoxelExplorer\n" + source.cells[0].source
    path = tmp_path / "copy.ipynb"
    nbformat.write(source, path)
    assert run_nbval(path).returncode == 0
    altered = path.read_text().replace("descent ends at d = 4.34", "descent ends at d = 4.35")
    assert altered != path.read_text()
    path.write_text(altered)
    assert run_nbval(path).returncode == 1
