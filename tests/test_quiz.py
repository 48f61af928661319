"""The quiz bank: complete, its numbers are those of the package, and Moodle's format can be read back."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("quiz", ROOT / "notebooks" / "quiz.py")
quiz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(quiz)
QUESTIONS = quiz.read_quiz()


def headings(number):
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    cells = nbformat.read(path, 4).cells
    return re.findall(r"^#+ (.+)$", "\n".join(c.source for c in cells if c.cell_type == "markdown"), re.MULTILINE)


def test_forty_questions_each_with_three_misconceptions():
    assert len(QUESTIONS) == 40
    assert len({question["id"] for question in QUESTIONS}) == 40
    for question in QUESTIONS:
        texts = [question["answer"], *(d["text"] for d in question["distractors"])]
        assert len(set(texts)) == 4, question["id"]
        assert all(d["misconception"] and d["feedback"] for d in question["distractors"])


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question["id"])
def test_its_section_is_there_and_its_numbers_are_computed(question):
    assert any(question["section"] in heading for heading in headings(question["notebook"]))
    for text, check in [(question["answer"], question.get("check"))] + [
        (wrong["text"], wrong.get("check")) for wrong in question["distractors"]
    ]:
        if check is not None:
            assert quiz.agrees(text, check), (text, check)


def test_gift_is_read_back():
    """Not by a parser from PyPI: the one there is asks for a Markdown of 2018 (it does read all forty)."""
    text = quiz.to_gift(QUESTIONS)
    items = re.findall(r"^::(.+?)::(.+?) \{\n(.+?)\n\}$", text, re.MULTILINE | re.DOTALL)
    assert [name for name, _, _ in items] == [question["id"] for question in QUESTIONS]

    def plain(escaped):
        return re.sub(r"\\(.)", r"\1", escaped)

    for question, (_, asked, choices) in zip(QUESTIONS, items, strict=True):
        assert plain(asked) == question["question"]
        read = [re.fullmatch(r"  ([=~])((?:\\.|[^#\\])+)#(.+)", line).groups() for line in choices.split("\n")]
        assert [mark for mark, _, _ in read] == ["=", "~", "~", "~"]
        assert [plain(answer) for _, answer, _ in read] == [
            question["answer"],
            *(wrong["text"] for wrong in question["distractors"]),
        ]
        assert plain(read[0][2]) == question["why"]
    assert set(re.findall(r"^\$CATEGORY: (.+)$", text, re.MULTILINE)) == {f"mbls/0{n}" for n in range(7)}
