"""The quiz bank for Moodle: ``python notebooks/quiz.py`` writes ``build/quiz.gift``.

``quiz.yaml`` holds the questions. A ``check`` there is an expression over the functions
of :data:`KNOWN`: a number is compared with the first one in the text, to the digits
written there; anything else must be true.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from mbls.constraints import (
    PENALTIES,
    calibration_map,
    confidence_at_margin,
    margin_calibration_map,
)
from mbls.data.home import recorded
from mbls.files import write_text
from mbls.losses import build_loss, parse_loss
from mbls.study.paper import REDUCED
from mbls.study.tables import part_of

ROOT = Path(__file__).resolve().parents[1]


def read_quiz(path: Path = ROOT / "notebooks" / "quiz.yaml") -> list[dict[str, Any]]:
    """The questions; every value is text, as it is written."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)[
        "questions"
    ]


def mapped(spec: str, q: list[float]) -> float:
    """What a loss makes of the first probability of a voxel that is truly q."""
    truth, (name, options) = torch.tensor([q], dtype=torch.float64), parse_loss(spec)
    if name == "mbls":
        return float(margin_calibration_map(truth, **options)[0, 0])
    loss = build_loss(spec, len(q))
    loss.reduction = "none"
    return float(calibration_map(loss, truth)[0, 0])


def pull(penalty: str, d: float, num_classes: int) -> float:
    """Gradient of a penalty in the winner's logit, all losers at distance d."""
    logits = torch.zeros(1, num_classes, dtype=torch.float64)
    logits[0, 0] = d
    return float(PENALTIES[penalty].gradient(logits)[0, 0])


def descent_ends_at(margin: float, alpha: float, num_classes: int) -> float:
    """The distance at which MbLS ends for a voxel of certain label."""
    certain = torch.eye(num_classes, dtype=torch.float64)[:1]
    end = margin_calibration_map(certain, float(margin), alpha)[0]
    return float((end[0] / end[1]).log())


def of_study(loss: str, column: str) -> float:
    """A figure of the recorded study, last weights, mean over the seeds."""
    rows = part_of(pd.read_csv(recorded("acdc_reduced.csv")), REDUCED, "losses", "last")
    return float(rows[rows["loss"] == loss][column].mean())


#: What a check may use.
KNOWN = {"sqrt": math.sqrt, "exp": math.exp, "log": math.log, "min": min, "max": max}
KNOWN |= {"confidence_at_margin": confidence_at_margin, "mapped": mapped, "pull": pull}
KNOWN |= {"descent_ends_at": descent_ends_at, "of_study": of_study}


def agrees(text: str, check: str) -> bool:
    """Whether an expression gives the number in a text, to the digits written there."""
    value = eval(check, {"__builtins__": {}}, KNOWN)  # the bank is ours, not the reader's
    if isinstance(value, bool):
        return value
    written = re.search(r"-?\d+(?:\.(\d+))?", text)
    assert written is not None, text
    return abs(float(written[0]) - value) <= 0.5001 * 10 ** -len(written[1] or "")


def to_gift(questions: list[dict[str, Any]]) -> str:
    """All questions in Moodle's GIFT format, a category for each notebook."""
    parts, category = [], ""
    for question in questions:
        if question["notebook"] != category:
            category = question["notebook"]
            parts.append(f"$CATEGORY: mbls/{category}")
        answers = [f"={_escaped(question['answer'])}#{_escaped(question['why'])}"]
        answers += [
            f"~{_escaped(d['text'])}#{_escaped(d['feedback'])}"
            for d in question["distractors"]
        ]
        lines = "\n".join(f"  {answer}" for answer in answers)
        parts.append(
            f"::{question['id']}::{_escaped(question['question'])} {{\n{lines}\n}}"
        )
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    return re.sub(r"([~=#{}:\\])", r"\\\1", text)


def main() -> None:
    parser = argparse.ArgumentParser(description="The quiz bank as Moodle's GIFT.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "quiz.gift")
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    questions = read_quiz()
    write_text(to_gift(questions), out)
    print(f"{out.name}: {len(questions)} questions")


if __name__ == "__main__":
    main()
