"""``make student``: copies without outputs, complete but for what is the teacher's."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("student", ROOT / "notebooks" / "student.py")
student = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(student)

LESSONS = sorted((ROOT / "notebooks").glob("0*.ipynb"))


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    out = tmp_path_factory.mktemp("build") / "student"
    student.build(out)
    return out


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_copy_is_the_lesson_without_its_outputs(copies, path):
    original, copy = read(path), read(copies / "notebooks" / path.name)
    assert [cell.source for cell in copy.cells] == [cell.source for cell in original.cells]
    assert [cell.id for cell in copy.cells] == [cell.id for cell in original.cells]
    # What folds an answer stays, so that it is folded when the student has run it.
    assert [cell.metadata for cell in copy.cells] == [cell.metadata for cell in original.cells]
    code = [cell for cell in copy.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in original.cells if cell.cell_type == "code")
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_links_still_lead_somewhere(copies):
    texts = [*copies.rglob("*.ipynb"), *copies.rglob("*.md")]
    found = [(path, target) for path in texts for target in student.links(path)]
    assert len(found) > 20
    assert [(path.name, target) for path, target in found if not target.exists()] == []


def test_what_is_the_teachers_stays_out(copies):
    held_back = [*(copies / "notebooks" / "solutions").glob("*.ipynb"), copies / "notebooks" / "INSTRUCTORS.md"]
    assert len(held_back) == len(LESSONS) + 1
    for path in held_back:
        assert path.stat().st_size < 1000
        assert "in your teacher's copy" in path.read_text()
    names = {path.name for path in copies.rglob("*") if path.is_file()}
    assert names.isdisjoint({"quiz.yaml", "slides.yaml", "answers.md", "student.py"})
    assignment = {path.name: path.read_text() for path in (copies / "notebooks" / "assignment").iterdir()}
    assert sorted(assignment) == ["README.md", "submission.py"]
    for name, text in assignment.items():
        assert text == (ROOT / "notebooks" / "assignment" / name).read_text()


def test_solutions_come_when_asked_for(tmp_path):
    student.build(tmp_path / "student", solutions=True)
    for path in sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb")):
        copy = read(tmp_path / "student" / "notebooks" / "solutions" / path.name)
        assert [cell.source for cell in copy.cells] == [cell.source for cell in read(path).cells]


def test_what_it_takes_to_run_is_there(copies):
    (wheel,) = copies.glob("mbls-*.whl")
    readme = (copies / "README.md").read_text()
    assert f"'{wheel.name}[course]'" in readme
    assert (copies / "constraints.txt").read_text() == (ROOT / "constraints.txt").read_text()


def test_a_build_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    out = tmp_path / "student"
    out.mkdir()
    (out / "old.txt").write_text("old")

    def fail(folder):
        raise RuntimeError("no wheel")

    monkeypatch.setattr(student, "_build_wheel", fail)
    with pytest.raises(RuntimeError, match="no wheel"):
        student.build(out)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert (out / "old.txt").exists()


def test_each_prediction_has_its_expected_answer():
    table = student.answers()
    asked = [
        id
        for path in LESSONS
        for cell in read(path).cells
        for id in re.findall(r'^ask\(\s*"([\d.]+)"', cell.source, re.MULTILINE)
    ]
    assert re.findall(r"^\| (\d\.\d+) \| .+ \| .+ \|$", table, re.MULTILINE) == asked
