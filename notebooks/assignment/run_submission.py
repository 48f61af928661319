"""Run by grade.py, in a process of its own: calls the functions of one submission.

``python run_submission.py SUBMISSION CALLS ANSWERS`` reads the calls from a JSON file and
writes a line for each as soon as it is answered, so that what came before a crash or an
endless loop is kept. No expected value is in this process.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: The most numbers that an answer may have.
MOST = 10_000


class NotForUse(types.ModuleType):
    """Stands for a module that the task is about: it can be imported, not used."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*arguments: Any, **options: Any) -> None:
            raise RuntimeError(
                f"{self.__name__} is switched off while this is graded: repair the function, do not replace it"
            )

        return refuse


def load(path: Path) -> types.ModuleType:
    """The submission as a module."""
    specification = importlib.util.spec_from_file_location("submission", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def decoded(argument: Any) -> Any:
    """An argument from JSON, where tensors and arrays are marked as such."""
    if not isinstance(argument, dict):
        return argument
    if "tensor" in argument:
        return torch.tensor(argument["tensor"], dtype=torch.float64)
    return np.array(argument["array"])


def encoded(value: Any) -> Any:
    """What a function returned as JSON can hold it: numbers, nested lists of them, texts."""
    if value is None or value is ... or isinstance(value, str):
        return None if value is ... else value
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().double().numpy()
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise TypeError(f"it returns {type(value).__name__}, no number") from None
    if array.size > MOST:
        raise ValueError(f"it returns {array.size} numbers, {MOST} at most are read")
    return array.tolist()


def described(error: BaseException, file: str) -> str:
    """An error in a line, with the last line of the submission that it went through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f", line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}{where}: {error}"[:300].rstrip(": ")


def answer(module: types.ModuleType, call: dict[str, Any]) -> dict[str, Any]:
    """The answer to one call; whatever goes wrong is one too."""
    try:
        arguments = [decoded(argument) for argument in call["arguments"]]
        with torch.no_grad():
            return {"value": encoded(getattr(module, call["function"])(*arguments))}
    except NotImplementedError:
        return {"value": None}
    except BaseException as error:
        return {"error": described(error, getattr(module, "__file__", ""))}


def main(submission: str, calls: str, answers: str) -> None:
    """Load the submission, answer all calls."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.argv = [submission]
    sys.modules["mbls.metrics"] = NotForUse("mbls.metrics")
    with open(answers, "w", encoding="utf-8") as file:

        def tell(number: int, what: dict[str, Any]) -> None:
            file.write(json.dumps({"call": number, **what}) + "\n")
            file.flush()

        try:
            module = load(Path(submission))
        except BaseException as error:
            tell(-1, {"error": described(error, submission)})
            return
        tell(-1, {"value": None})
        for number, call in enumerate(json.loads(Path(calls).read_text(encoding="utf-8"))):
            tell(number, answer(module, call))


if __name__ == "__main__":
    main(*sys.argv[1:])
