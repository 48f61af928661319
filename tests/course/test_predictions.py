"""Predictions: asked, kept, changed until they are revealed, judged; and what happens to their file."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mbls.course import predictions
from mbls.course.answers import Answer, judge_answers, own_answers, read_answers
from mbls.course.predictions import ask, my_predictions, reveal


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    """A file of this test's own."""
    path = tmp_path / "mine.json"
    monkeypatch.setenv("MBLS_PREDICTIONS", str(path))
    monkeypatch.setattr(predictions, "_FORMS", {})
    return path


def question(**changes):
    return ask("1.1", "Which?", options=["a", "b", "c"], **changes)


def number(**changes):
    return ask("1.2", "How many?", unit="%", tolerance=5, **changes)


def test_an_answer_is_kept_compared_and_locked(file):
    question(answer="b", confidence=0.8)
    assert read_answers(file) == {"1.1": Answer("Which? (a / b / c)", "b", 0.8)}
    shown = reveal("1.1", "b", "Because.")
    assert repr(shown) == "Answer to 1.1: b. Because."
    assert "You said b and were 80 % sure: right." in shown.view.value
    assert read_answers(file)["1.1"].right is True
    question(answer="a", confidence=0.9)  # too late
    assert read_answers(file)["1.1"].answer == "b"


def test_until_then_it_can_be_changed(file):
    question(answer="b", confidence=0.8)
    question(answer="c", confidence=0.5)
    reveal("1.1", "b", "Because.")
    assert read_answers(file)["1.1"] == Answer("Which? (a / b / c)", "c", 0.5, "b", False)


@pytest.mark.parametrize(("answer", "right"), [(45, True), (55, True), (44.9, False), (56, False)])
def test_a_number_is_right_within_its_tolerance(file, answer, right):
    number(answer=answer, confidence=0.6)
    reveal("1.2", np.float64(50), "Half.")
    assert read_answers(file)["1.2"].right is right


def test_skipped_is_no_answer_and_counts_for_nothing(file):
    question()
    assert not file.exists()
    shown = reveal("1.1", "a", "Because.")
    assert "You made no prediction here" in shown.view.value
    assert read_answers(file)["1.1"].right is None
    with pytest.raises(ValueError, match="no prediction that was revealed"):
        judge_answers([own_answers()])


def test_another_wording_is_another_question(file):
    question(answer="b", confidence=0.8)
    reveal("1.1", "b", "Because.")
    predictions._FORMS.clear()
    form = ask("1.1", "Which?", options=["a", "b"])
    assert not form.button.disabled
    reveal("1.1", "a", "Because.")
    assert read_answers(file)["1.1"] == Answer("Which? (a / b)", truth="a")


def test_the_form_by_hand(file):
    form = question()
    form.button.click()
    assert "Choose one of the answers first." in form.message.value
    form.field.value, form.sure.value = "c", 33
    form.button.click()
    assert read_answers(file)["1.1"].confidence == pytest.approx(1 / 3)
    assert "You can change it until the answer is shown." in form.message.value
    reveal("1.1", "c", "Because.")
    assert form.button.disabled
    assert form.field.disabled
    assert "Locked: c, 33 % sure." in form.message.value


@pytest.mark.parametrize("text", ["48", " 48 % ", "48,0"])
def test_a_number_by_hand(file, text):
    form = number()
    form.field.value = text
    form.button.click()
    assert read_answers(file)["1.2"] == Answer("How many? (a number in %, within 5)", 48.0, 0.5)
    form.field.value = "many"
    form.button.click()
    assert "A number is wanted here" in form.message.value


def test_what_a_page_stores_says_nothing_of_the_reader():
    """The same text and HTML for every reader, which nbval compares; the rest stands in the widget."""
    before = question()._repr_mimebundle_()
    after = question(answer="b", confidence=0.8)._repr_mimebundle_()
    assert {before[kind] == after[kind] for kind in ("text/html", "text/plain")} == {True}
    shown = reveal("1.1", "b", "Because $a < b$.")._repr_mimebundle_()
    assert "80 %" not in shown["text/html"]
    assert "Because $a &lt; b$." in shown["text/html"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": ["a"]}, "options: got .'a'., expected two or more"),
        ({"options": ["a", "a"]}, "expected two or more different"),
        ({"options": "ab"}, "options: got the text 'ab'"),
        ({}, "options, tolerance: got"),
        ({"options": ["a", "b"], "tolerance": 1}, "options, tolerance: got"),
        ({"tolerance": 0}, "tolerance: got 0"),
        ({"options": ["a", "b"], "answer": "c", "confidence": 0.9}, "answer: got 'c', expected one of a, b"),
        ({"options": ["a", "b"], "answer": "a", "confidence": 0.4}, r"confidence: got 0.4, expected .* from 0.5 to 1"),
        ({"options": ["a", "b"], "answer": "a"}, "answer, confidence: got 'a' and None, expected both"),
        ({"tolerance": 1, "answer": "3", "confidence": 0.4}, "answer: got '3', expected a number"),
        ({"tolerance": 1, "answer": float("nan"), "confidence": 0.4}, "answer: got nan"),
    ],
)
def test_a_wrong_question_or_answer_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ask("1.1", "Which?", **options)


def test_reveal_wants_a_question_and_its_truth():
    with pytest.raises(ValueError, match=r"id: got '1\.1', expected one that was asked above \(none so far\)"):
        reveal("1.1", "a", "")
    question()
    with pytest.raises(ValueError, match="truth: got 'd', expected one of a, b, c"):
        reveal("1.1", "d", "")
    with pytest.raises(ValueError, match="for a second question"):
        ask("1.1", "Who?", options=["a", "b"])


@pytest.mark.parametrize("content", ["", "[1]", '{"1.1": 3}', '{"1.1": {"question": "?", "answer": "b"}}', "[" * 9999])
def test_a_damaged_file_is_set_aside(file, content, capsys):
    file.write_text(content)
    question(answer="b", confidence=0.8)
    assert "It is now called mine.damaged1.json, and a new file begins." in capsys.readouterr().out
    assert (file.parent / "mine.damaged1.json").read_text() == content
    assert list(read_answers(file)) == ["1.1"]


def test_where_nothing_can_be_written_the_notebook_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "a").write_text("a file")
    monkeypatch.setenv("MBLS_PREDICTIONS", str(tmp_path / "a" / "mine.json"))
    question(answer="b", confidence=0.8)
    assert "cannot be kept" in capsys.readouterr().out
    assert repr(reveal("1.1", "b", "Because.")) == "Answer to 1.1: b. Because."


def test_two_notebooks_at_once_lose_nothing(file):
    code = """
import sys
from mbls.course.predictions import ask
for n in range(10):
    ask(f"{sys.argv[1]}.{n}", "Which?", options=["a", "b"], answer="a", confidence=0.7)
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, str(number)]) for number in (1, 2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(read_answers(file)) == 20


def test_the_readers_own_diagram(file, capsys):
    assert "once 5 of your predictions have been revealed" in repr(my_predictions())
    for n in range(10):
        ask(f"1.{n}", "Which?", options=["a", "b"], answer="a", confidence=0.9)
        reveal(f"1.{n}", "a" if n < 6 else "b", "Because.")
    picture = my_predictions()
    told = capsys.readouterr().out
    assert "10 predictions: 90 % sure on average, right in 60 %. You were overconfident by 30 points" in told
    assert "this is more than that" in told
    assert b"<svg" in picture.content
    assert picture.alt in told


def test_a_reader_is_judged_as_a_forecaster():
    answers = {str(n): Answer("?", "a", 0.5 + n / 100, "a", n % 3 > 0) for n in range(40)}
    found = judge_answers([answers])
    sure = np.array([answer.confidence for answer in answers.values()])
    right = np.array([answer.right for answer in answers.values()])
    assert found.brier == pytest.approx(((sure - right) ** 2).mean())
    assert found.gap == pytest.approx(sure.mean() - right.mean())
    assert found.interval[0] < found.gap < found.interval[1]
    assert found.reliability.count.sum() == 40
    assert found.reliability.accuracy[2] == pytest.approx(right[sure <= 0.6].mean())


def test_the_perfect_reader_is_within_chance():
    random = np.random.default_rng(1)
    within = []
    for _ in range(40):
        sure = random.uniform(0.5, 1, 28)
        answers = {str(n): Answer("?", "a", p, "a", bool(random.random() < p)) for n, p in enumerate(sure)}
        found = judge_answers([answers])
        within.append(abs(found.gap) <= found.chance)
    assert np.mean(within) > 0.8


def test_the_class(tmp_path, capsys):
    """`mbls predictions FILES...`: pooled; no name of a file is shown."""
    from mbls.__main__ import main

    paths = []
    for reader in range(3):
        answers = {str(n): {"question": "?", "answer": "a", "confidence": 0.9} for n in range(4)}
        answers = {id: answer | {"truth": "a", "right": int(id) > reader} for id, answer in answers.items()}
        paths.append(tmp_path / f"Ada{reader}.json")
        paths[-1].write_text(json.dumps(answers))
    assert main(["predictions", *map(str, paths), "--out", str(tmp_path / "class.png")]) == 0
    told = capsys.readouterr().out
    assert (
        "3 readers, 12 predictions: 90 % sure on average, right in 50 %. They were overconfident by 40 points" in told
    )
    assert "Ada" not in told
    assert (tmp_path / "class.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "Ada1.json").write_text("[]")
    assert main(["predictions", *map(str, paths)]) == 2
    assert "Ada1.json: cannot be read" in capsys.readouterr().err
