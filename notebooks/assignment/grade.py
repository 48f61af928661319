"""Grade submissions of the assignment (for the teacher; RUBRIC.md says how points are given).

``python notebooks/assignment/grade.py SUBMISSIONS... [--out grades.csv]`` takes files, and
folders of them. Each submission runs in a process of its own, with a time limit; what it
prints is thrown away, and no expected value is in that process. A process is no sandbox:
students' code runs with your rights, so grade files of strangers in a container, or as a
user who owns nothing.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hidden_checks import Answer, Call, Mark, marks, questions

from mbls.files import MAX_TEXT, write_table

RUNNER = Path(__file__).with_name("run_submission.py")
#: The text has at most this many words, and is given this many points, by hand.
WORDS, WRITTEN_POINTS = 200, 4


def submissions(paths: Sequence[Path]) -> dict[str, Path]:
    """Name -> file: a file by its own name, those in a folder by their path within it.

    Raises:
        ValueError: a path that does not exist, a folder without a submission, a name twice.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            files = {str(file.relative_to(path)): file for file in sorted(path.rglob("*.py"))}
        else:
            files = {path.name: path} if path.is_file() else {}
        if not files:
            raise ValueError(f"{path}: expected a submission (.py), or a folder with some")
        if twice := found.keys() & files.keys():
            raise ValueError(f"{path}: got {min(twice)} a second time, expected other names")
        found |= files
    return found


def answers(file: Path, calls: Sequence[Call], seconds: float) -> list[Answer]:
    """What a submission answers to the calls.

    A function that crashes its process or runs past the limit has no answer to any call; the
    others are then asked in a new process.
    """
    given: dict[int, Answer] = {}
    while waiting := [number for number in range(len(calls)) if number not in given]:
        got, why = run(file, [calls[number] for number in waiting], seconds)
        loaded = got.pop(-1, None)
        if loaded is None or loaded.error:
            failure = Answer(error=f"the file cannot be loaded ({loaded.error if loaded else why})")
            return [given.get(number, failure) for number in range(len(calls))]
        given |= {waiting[place]: answer for place, answer in got.items()}
        if len(got) < len(waiting):
            broken = calls[next(number for number in waiting if number not in given)].function
            of_it = [number for number in waiting if calls[number].function == broken]
            given |= {number: Answer(error=why) for number in of_it}
    return [given[number] for number in range(len(calls))]


def run(file: Path, calls: Sequence[Call], seconds: float) -> tuple[dict[int, Answer], str]:
    """Ask a submission in a process of its own.

    Returns:
        Place of a call -> its answer, for those that were answered, -1 for the loading; and
        why the rest was not.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        asked, answered = Path(folder, "calls.json"), Path(folder, "answers.jsonl")
        asked.write_text(json.dumps([as_json(call) for call in calls]), encoding="utf-8")
        command = [sys.executable, "-P", str(RUNNER), str(file.resolve())]
        process = subprocess.Popen(
            [*command, str(asked), str(answered)],
            cwd=folder,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that what it starts ends with it
        )
        try:
            code = _wait(process, answered, seconds)
        finally:
            _kill(process)
        why = f"stopped after {seconds:g} s: is there an endless loop?"
        if code is not None:
            why = f"the process ended early, with status {code}"
        return read_answers(answered, len(calls)), why


def _wait(process: subprocess.Popen, answered: Path, seconds: float) -> int | None:
    """The exit status; None where no further answer came within the limit."""
    size, since = 0, time.monotonic()
    while time.monotonic() - since < seconds and size <= MAX_TEXT:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.1)
        now = answered.stat().st_size if answered.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
    return None


def _kill(process: subprocess.Popen) -> None:
    """End a process and whatever it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def as_json(call: Call) -> dict[str, Any]:
    def value(argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            return {"tensor": argument.tolist()}
        return {"array": argument.tolist()} if isinstance(argument, np.ndarray) else argument

    return {"function": call.function, "arguments": [value(a) for a in call.arguments]}


def read_answers(file: Path, calls: int) -> dict[int, Answer]:
    """The answers in a file that students' code may have written to: strange lines are left
    out, and of two lines for one call the first counts."""
    found: dict[int, Answer] = {}
    if not file.is_file() or file.stat().st_size > MAX_TEXT:
        return found
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            told = json.loads(line)
            place, answer = told["call"], answer_of(told)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            continue
        if type(place) is int and -1 <= place < calls:
            found.setdefault(place, answer)
    return found


def answer_of(told: Mapping[str, Any]) -> Answer:
    """An answer as run_submission.py tells it."""
    value = told.get("value")
    if isinstance(value, (list, int, float)):
        value = torch.tensor(value, dtype=torch.float64)
    return Answer(value, str(told.get("error", "")))


def text_of(file: Path) -> str:
    """The text of task 4, without running the file; "" where it cannot be read."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if "ANSWER" in names and isinstance(node.value.value, str):
                return node.value.value.strip()
    return ""


def row(name: str, given: Sequence[Mark], text: str) -> dict[str, Any]:
    """The row of a student in the table."""
    # A text that begins as a formula would be run by a spreadsheet.
    shown = f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
    return {
        "submission": name,
        **{mark.item: mark.points for mark in given},
        "code": sum(mark.points for mark in given),
        "words": len(text.split()),
        "4 text": "",
        "text": shown,
        "feedback": "\n".join(f"{mark.item}: {mark.feedback!r}" for mark in given),
    }


def show(name: str, given: Sequence[Mark], text: str) -> None:
    """Print what a student gets, and why."""
    points, most = (sum(values) for values in zip(*((m.points, m.most) for m in given), strict=True))
    print(f"\n{name}: {points:g} of {most:g} for the code")
    # A file that cannot be loaded has one reason, not thirteen.
    reasons = {mark.feedback for mark in given}
    for mark in given if len(reasons) > 1 else ():
        print(f"  {mark.item:24} {mark.points}/{mark.most}  {mark.feedback!r}")
    for reason in reasons if len(reasons) == 1 else ():
        print(f"  all items: {reason!r}")
    words = len(text.split())
    over = f", {words - WORDS} more than allowed" if words > WORDS else ""
    told = f"{words} words{over}: by hand, see RUBRIC.md" if words else "… Not answered."
    print(f"  {'4 text':24} {'-' if words else 0}/{WRITTEN_POINTS}  {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Grade submissions of the assignment.")
    parser.add_argument("submissions", nargs="+", type=Path, help="files, or folders of them")
    parser.add_argument("--out", type=Path, help="a table of the points, CSV")
    parser.add_argument("--seconds", type=float, default=60, help="limit of a call (60)")
    parser.add_argument("--seed", type=int, default=0, help="of the hidden numbers (0)")
    options = parser.parse_args()
    try:
        files = submissions(options.submissions)
    except ValueError as error:
        parser.error(str(error))
    calls, rows = questions(options.seed), []
    for name, file in files.items():
        given, text = marks(calls, answers(file, calls, options.seconds)), text_of(file)
        show(name, given, text)
        rows.append(row(name, given, text))
    if options.out:
        write_table(pd.DataFrame(rows), options.out)
        print(f"\n{options.out}: {len(rows)} submissions")


if __name__ == "__main__":
    main()
