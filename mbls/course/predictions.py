"""Predict first: :func:`ask` takes a reader's answer and how sure they are, :func:`reveal` compares and locks it.

Example:
    >>> import os, tempfile
    >>> os.environ["MBLS_PREDICTIONS"] = tempfile.mkdtemp() + "/answers.json"  # the reader's own, without this line
    >>> ask("0.1", "Is a confidence of 0.5 a failure?", options=["yes", "no"], answer="no", confidence=0.9)
    Predict first 0.1: Is a confidence of 0.5 a failure? (yes / no)
    >>> reveal("0.1", "no", "It says that two experts would toss a coin.")
    Answer to 0.1: no. It says that two experts would toss a coin.
"""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

try:
    import ipywidgets
except ImportError as error:
    raise ImportError("predictions need ipywidgets: pip install 'mbls[course]'") from error

from mbls import plots
from mbls.course.answers import BIN_EDGES, Answer, Question, change_answer, draw, judge_answers, own_answers

__all__ = ["Form", "Reveal", "ask", "my_predictions", "reveal"]

#: Fewer make no diagram.
_FEWEST = 5

_WIDE = {"width": "auto", "max_width": "700px"}
_BOX = "border-left: 4px solid {colour}; padding: 2px 12px; margin: 4px 0; max-width: 760px; line-height: 1.5"


class _Shown:
    """Something that shows a widget where a kernel runs, and the same HTML and text for every reader where none does.

    nbval compares HTML and text and leaves the widget out. So all that is personal stands in the widget, and a notebook
    passes its test whatever its reader answered, or nothing.
    """

    view: ipywidgets.Widget
    static: str

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = dict(self.view._repr_mimebundle_(**options) or {})
        return bundle | {"text/html": self.static, "text/plain": repr(self)}


class Form(_Shown):
    """What :func:`ask` shows: the question, its choices or a field, a slider of confidence, a button and a message.

    Attributes:
        question: what is asked.
        field: the choices or the field.
        sure: the slider, in percent.
        button: stores the answer.
        message: what is stored.
        view: all of them.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        named = f"<b>Predict first {question.id}.</b> {html.escape(question.text)}"
        if question.options:
            items = "".join(f"<li>{html.escape(option)}</li>" for option in question.options)
            self.static = f"{named}<ul>{items}</ul><i>Run this cell to answer.</i>"
            self.field = ipywidgets.RadioButtons(options=question.options, value=None, layout=_WIDE)
        else:
            wanted = question.wording.removeprefix(question.text).strip()
            self.static = f"{named} {html.escape(wanted)}<br><i>Run this cell to answer.</i>"
            self.field = ipywidgets.Text(placeholder="a number", layout={"width": "140px"})
        self.static = _box(
            plots.COLOURS["now"], self.static, "mbls-ask", {**dataclasses.asdict(question), "wording": question.wording}
        )
        low = round(100 * question.lowest_confidence)
        self.sure = ipywidgets.IntSlider(
            value=low or 50,
            min=low,
            max=100,
            description="I am sure to",
            readout_format="d",
            style={"description_width": "90px"},
            layout={"width": "420px"},
        )
        self.button = ipywidgets.Button(
            description="Store my prediction", button_style="primary", layout={"width": "180px"}
        )
        self.button.on_click(self._store)
        self.message = ipywidgets.HTML()
        unit = "" if question.options else f"{question.unit} (right if within {question.tolerance:g})"
        guess = f"%  ({low} %: a blind guess)" if question.options else "%  (that it lies within)"
        self.view = ipywidgets.VBox(
            [
                ipywidgets.HTMLMath(_box(plots.COLOURS["now"], named)),
                ipywidgets.HBox([self.field, ipywidgets.Label(unit)]),
                ipywidgets.HBox([self.sure, ipywidgets.Label(guess)]),
                ipywidgets.HBox([self.button, self.message]),
            ]
        )

    def store(self, answer: Any, confidence: Any) -> None:
        """Store an answer, unless the truth has been shown.

        Args:
            answer: an option or a number.
            confidence: from 1/n to 1 for n options, from 0 to 1 for a number.

        Raises:
            ValueError: an answer or a confidence of another kind.
        """
        question = self.question
        given = Answer(question.wording, question.checked("answer", answer), question.checked_confidence(confidence))
        self.show(change_answer(question.id, lambda old: old if old and _stands(old, question) else given))

    def show(self, stored: Answer | None) -> None:
        """Show what is stored.

        Args:
            stored: from the file; None if there is nothing, or an answer to an older wording.
        """
        locked = stored is not None and stored.revealed
        for control in (self.field, self.sure, self.button):
            control.disabled = locked
        if stored is None or stored.answer is None:
            self._say("The answer has been shown: a prediction no longer counts." if locked else "You may skip this.")
            return
        shown: Any = stored.answer if self.question.options else f"{stored.answer:.10g}"
        self.field.value = shown
        self.sure.value = round(100 * (stored.confidence or 0))
        told = f"{self.question.said(stored.answer)}, {self.sure.value} % sure."
        self._say(f"Locked: {told}" if locked else f"Stored: {told} You can change it until the answer is shown.")

    def _store(self, button: ipywidgets.Button) -> None:
        # 33 % of the slider is the blind guess of 1/3.
        confidence = max(self.sure.value / 100, self.question.lowest_confidence)
        answer = self.field.value
        if answer is None:
            self._say("Choose one of the answers first.")
            return
        if not self.question.options:
            try:
                text = answer.strip().removesuffix(self.question.unit).replace(",", ".")
                answer = self.question.checked("answer", float(text))
            except ValueError:
                self._say("A number is wanted here, such as 2.5.")
                return
        self.store(answer, confidence)

    def _say(self, text: str) -> None:
        self.message.value = f'<div role="status" aria-live="polite" class="mbls-prediction">{html.escape(text)}</div>'

    def __repr__(self) -> str:
        return f"Predict first {self.question.id}: {self.question.wording}"


class Reveal(_Shown):
    """What :func:`reveal` shows: the truth and why, and in the widget also how the reader did."""

    def __init__(self, question: Question, stored: Answer, truth: str | float, why: str) -> None:
        self._text = f"Answer to {question.id}: {question.said(truth)}. {why}"
        answer = f"<b>Answer to {question.id}: {html.escape(question.said(truth))}.</b> {html.escape(why)}"
        # JupyterLab shows the first line of a folded output.
        told = {"id": question.id, "question": question.wording, "truth": truth}
        self.static = f"<!-- The answer: run this cell. -->\n{_box(plots.COLOURS['now'], answer, 'mbls-reveal', told)}"
        colour, compared = (
            plots.COLOURS["now"],
            "You made no prediction here. That is fine; this question does not count.",
        )
        if stored.answer is not None:
            colour = plots.COLOURS["margin" if stored.right else "penalised"]
            said = f"You said {question.said(stored.answer)} and were {100 * (stored.confidence or 0):.0f} % sure"
            compared = f"✓ {said}: right." if stored.right else f"✗ {said}: not this time."
        compared = f'<div class="mbls-compared">{html.escape(compared)}</div>'
        self.view = ipywidgets.HTMLMath(_box(colour, compared + answer))

    def __repr__(self) -> str:
        return self._text


#: The forms of this kernel, by the question's id.
_FORMS: dict[str, Form] = {}


def ask(
    id: str,
    question: str,
    *,
    options: Sequence[str] = (),
    unit: str = "",
    tolerance: float | None = None,
    answer: str | float | None = None,
    confidence: float | None = None,
) -> Form:
    """Ask for a prediction, and how sure the reader is. It may be skipped, and changed until it is revealed.

    Args:
        id: number of the notebook and of the question in it, as "2.1".
        question: the question; formulas between dollar signs.
        options: the choices; none for a number.
        unit: of the number.
        tolerance: how far from the truth the number may lie and still be right.
        answer: the answer, from code; None to let the reader give it.
        confidence: of that answer, from 1/n to 1 for n options, from 0 to 1 for a number.

    Raises:
        ValueError: a question that :class:`~mbls.course.answers.Question` refuses; another one under an id that has
            been asked; an answer that is none, or without its confidence, or the other way round.

    Example:
        >>> ask("2.1", "How sure is the network?", unit="%", tolerance=5)
        Predict first 2.1: How sure is the network? (a number in %, within 5)
    """
    if isinstance(options, str):
        raise ValueError(f"options: got the text {options!r}, expected a list of texts")
    form = Form(Question(id, question, tuple(options), unit, tolerance))
    if id in _FORMS and _FORMS[id].question != form.question:
        raise ValueError(f"id: got {id!r} for a second question, expected another id (or a restarted kernel)")
    if (answer is None) != (confidence is None):
        raise ValueError(f"answer, confidence: got {answer!r} and {confidence!r}, expected both or none")
    if answer is None:
        stored = own_answers().get(id)
        form.show(stored if stored and stored.question == form.question.wording else None)
    else:
        form.store(answer, confidence)
    _FORMS[id] = form
    return form


def reveal(id: str, truth: str | float, why: str) -> Reveal:
    """Show the truth, compare the reader's answer with it, and lock the answer.

    Args:
        id: of a question that has been asked in this kernel.
        truth: one of its options, or a number.
        why: one sentence; formulas between dollar signs.

    Raises:
        ValueError: an id that has not been asked; a truth that is no option, or no number.

    Example:
        See the top of this module.
    """
    if id not in _FORMS:
        asked = ", ".join(_FORMS) or "none so far"
        raise ValueError(f"id: got {id!r}, expected one that was asked above ({asked}); run the cell with ask first")
    form = _FORMS[id]
    question, value = form.question, form.question.checked("truth", truth)

    def judged(old: Answer | None) -> Answer:
        if old is None or old.question != question.wording:  # none, or one to another wording
            return Answer(question.wording, truth=value)
        right = None if old.answer is None else question.is_right(old.answer, value)
        return replace(old, truth=value, right=right)

    stored = change_answer(id, judged)
    form.show(stored)
    return Reveal(question, stored, value, why)


class _NotYet:
    """In the place of a reader's diagram; a page without a kernel draws it there from what is kept in the browser."""

    def __repr__(self) -> str:
        return f"Your own reliability diagram stands here once {_FEWEST} of your predictions have been revealed."

    def _repr_html_(self) -> str:
        return _box(plots.COLOURS["now"], repr(self), "mbls-mine", {"fewest": _FEWEST, "edges": BIN_EDGES.tolist()})


def my_predictions() -> Any:
    """The reader's own reliability diagram, with a sentence on it.

    Returns:
        The picture; a line that says why there is none where fewer than five predictions have been revealed.
    """
    answers = own_answers()
    count = sum(answer.right is not None for answer in answers.values())
    if count < _FEWEST:
        return _NotYet()
    calibration = judge_answers([answers])
    text = calibration.describe("You were")
    print(text)
    return plots.show(draw(calibration, "Your own predictions", f"your answers to {calibration.count} questions"), text)


def _stands(old: Answer, question: Question) -> bool:
    """Whether an answer to just this question has been revealed, so that it stays."""
    return old.revealed and old.question == question.wording


def _box(colour: str, text: str, kind: str = "", data: Any = None) -> str:
    """A box of HTML; kind and data are for pages that let their readers answer without a kernel."""
    named = f' class="{kind}" data-mbls="{html.escape(json.dumps(data))}"' if kind else ""
    return f'<div{named} style="{_BOX.format(colour=colour)}">{text}</div>'
