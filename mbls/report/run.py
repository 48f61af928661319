"""Judge a folder of predictions: case by case, over processes or machines, resumable, with what failed told."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

import mbls
from mbls.data.nnunet import DESCRIPTION
from mbls.engine.predict import Prediction, PredictionFolder
from mbls.engine.read import FoundPredictions, read_predictions
from mbls.files import check_file_name, read_json, write_json
from mbls.posthoc import TemperatureScaling
from mbls.progress import progress_bar
from mbls.report.calibrate import Fitted, fit_on
from mbls.report.cases import JudgedCase, judge_case

__all__ = ["INDEX", "Judged", "is_judged", "judge_folder", "merge_judged", "read_judged"]

#: In a folder of judged cases: what they are of.
INDEX = "judged.json"
_CASES = "judged_cases"


@dataclass(frozen=True)
class Judged:
    """Predictions that were judged, on disk.

    Attributes:
        folder: where they lie.
        name: of the data.
        class_names: K names, index 0 the background.
        cases: the ids of those that were judged, in order.
        problems: (case or file, what was wrong): failed cases, then what had no partner.
        failed: number of cases that could not be judged, or are not judged yet.
        fitted: what was fitted on other cases; None without.
        told: what was asked for, by name.
    """

    folder: Path
    name: str
    class_names: tuple[str, ...]
    cases: tuple[str, ...]
    problems: tuple[tuple[str, str], ...]
    failed: int
    fitted: Fitted | None
    told: dict[str, Any]

    def __iter__(self) -> Iterator[JudgedCase]:
        return map(self._read, self.cases)

    def _read(self, case: str) -> JudgedCase:
        path = _path(self.folder, case)
        one = JudgedCase.load(path)
        if one.judgement.class_names != self.class_names or one.row["case"] != case:
            raise ValueError(
                f"{path}: got {one.row['case']} with the classes {', '.join(one.judgement.class_names)}, "
                f"expected {case} with {', '.join(self.class_names)}"
            )
        return one


@dataclass(frozen=True)
class _Task:
    """What each process needs to judge any of the cases."""

    found: PredictionFolder
    folder: Path
    surface: bool
    scaling: TemperatureScaling | None
    write: Path | None
    told: str

    def __call__(self, case: str) -> str | None:
        """Judge a case, unless that has been done; returns what was wrong with it."""
        # Sums depend on the number of threads to the last bit, figures must not.
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            identity = self._identity(case)
            if self._done(case, identity):
                return None
            prediction = self.found.read(case)
            judged = judge_case(prediction, self.found.class_names, identity, self.scaling, self.surface)
            self._write(prediction)
            judged.save(_path(self.folder, case))
            return None
        except MemoryError:
            return f"{case}: got more voxels than memory holds, expected fewer --workers or a larger machine"
        except (OSError, ValueError) as error:
            _path(self.folder, case).unlink(missing_ok=True)  # of an earlier run, whose files have changed since
            return str(error)
        finally:
            torch.set_num_threads(before)

    def _identity(self, case: str) -> str:
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.found.files(case)]
        return hashlib.sha256(json.dumps([case, files, self.told]).encode()).hexdigest()

    def _done(self, case: str, identity: str) -> bool:
        if self.write is not None and not _writable(self.found).target(case, self.write).is_file():
            return False
        try:
            return JudgedCase.load(_path(self.folder, case)).identity == identity
        except (OSError, ValueError):
            return False

    def _write(self, prediction: Prediction) -> None:
        if self.write is not None and self.scaling is not None:
            with torch.inference_mode():
                probs = self.scaling(prediction.logits.unsqueeze(0)).squeeze(0).softmax(0)
            _writable(self.found).write(prediction.id, probs, self.write)


def judge_folder(
    predictions: str | Path,
    labels: str | Path,
    out: str | Path,
    *,
    logits: bool = False,
    classes: Sequence[str] | None = None,
    subject: str | None = None,
    surface: bool = True,
    fit: tuple[str | Path, str | Path] | None = None,
    write: str | Path | None = None,
    workers: int = 1,
    shard: tuple[int, int] | None = None,
    progress: bool = False,
) -> Judged:
    """Judge predictions that any program wrote; a run that was stopped goes on where it was.

    Each case is judged alone and kept in ``out``; :func:`mbls.report.write_report` makes tables and pages of them.

    Args:
        predictions: folder, as for :func:`mbls.engine.read.read_predictions`; so are labels, logits, classes, subject.
        labels: folder.
        out: folder for what is judged; made where it is missing.
        logits: whether the numbers are logits.
        classes: K names.
        subject: regular expression that finds the subject in a case.
        surface: False leaves out HD95, ASD and the distances from the boundary.
        fit: predictions and labels of validation cases: a temperature and intervals of volumes are fitted on them.
        write: folder for the probabilities after the temperature, in the format that came in. Needs ``fit``.
        workers: processes, each with one thread; any number gives the same figures to the bit.
        shard: (i, n): only every n-th case from the i-th on.
        progress: whether a bar is shown.

    Returns:
        What was judged, and what could not be.

    Raises:
        FileNotFoundError: a folder is missing, or no case is in both.
        ValueError: an option that does not fit; see :func:`mbls.engine.read.read_predictions`.
        OSError: a process died.
    """
    if workers < 1:
        raise ValueError(f"workers: got {workers}, expected at least 1")
    out = Path(out)
    options: dict[str, Any] = {"logits": logits, "classes": classes, "subject": subject}
    found = read_predictions(predictions, labels, **options)
    destination = _destination(write, found, predictions, fit)
    fitted, fit_problems = None, []
    if fit is not None:
        validation = read_predictions(fit[0], fit[1], **{**options, "classes": found.class_names})
        fitted, fit_problems = fit_on(validation, progress)
    told = {
        "predictions": str(predictions),
        "labels": str(labels),
        "fit": None if fit is None else [str(part) for part in fit],
        "logits": logits,
        "surface": surface,
        "version": mbls.__version__,
    }
    (out / _CASES).mkdir(parents=True, exist_ok=True)
    index = {"name": found.name, "class_names": found.class_names, "cases": found.cases, "told": told}
    index |= {"fitted": None if fitted is None else asdict(fitted)}
    index |= {"unmatched": found.unmatched, "fit_problems": fit_problems}
    write_json(index, out / INDEX)
    scaling = None if fitted is None else TemperatureScaling(fitted.temperature)
    identity = json.dumps([logits, surface, mbls.__version__, found.class_names, fitted and fitted.temperature])
    task = _Task(found, out, surface, scaling, destination, identity)
    mine = found.cases if shard is None else found.cases[shard[0] - 1 :: shard[1]]
    failures: dict[str, str] = {}
    with progress_bar(total=len(mine), desc="judge", unit="case", disable=not progress) as bar:
        for case, problem in _each(task, mine, workers):
            bar.update()
            if problem is not None:
                failures[case] = problem
    return _judged(out, mine, failures)


def merge_judged(folders: Sequence[str | Path], out: str | Path) -> Judged:
    """Bring together what the shards of one cohort judged.

    Args:
        folders: the ``out`` of each shard.
        out: folder for all of it; may be one of them.

    Raises:
        FileNotFoundError: a folder that holds nothing judged.
        ValueError: folders of different predictions or options.
    """
    out = Path(out)
    places = [Path(folder) for folder in folders]
    first, *others = indices = [_index(place) for place in places]
    for place, index in zip(places[1:], others, strict=True):
        for part in ("name", "class_names", "cases", "fitted"):
            if index[part] != first[part]:
                raise ValueError(f"{place / INDEX}: got other {part} than {places[0] / INDEX}, expected the same")
        for option in ("logits", "surface", "version"):
            if index["told"][option] != first["told"][option]:
                raise ValueError(f"{place / INDEX}: got another {option} than {places[0] / INDEX}, expected the same")
    (out / _CASES).mkdir(parents=True, exist_ok=True)
    for place in places:
        for case in first["cases"]:
            source = _path(place, case)
            if source.is_file() and place.resolve() != out.resolve():
                shutil.copyfile(source, _path(out, case))
    write_json(indices[0], out / INDEX)
    return read_judged(out)


def is_judged(folder: str | Path) -> bool:
    """Whether :func:`judge_folder` wrote into a folder."""
    return (Path(folder) / INDEX).is_file()


def read_judged(folder: str | Path) -> Judged:
    """What :func:`judge_folder` left in a folder.

    Raises:
        FileNotFoundError: nothing judged there.
        ValueError: an index that cannot be read.
    """
    return _judged(Path(folder), _index(Path(folder))["cases"], {})


def _judged(folder: Path, cases: Sequence[str], failures: dict[str, str]) -> Judged:
    index = _index(folder)
    there = tuple(case for case in cases if case not in failures and _path(folder, case).is_file())
    missing = {case: "not judged yet, or failed; judge it again to see why" for case in cases if case not in there}
    problems = [*(missing | failures).items()]
    failed = len(problems) + len(index["fit_problems"])
    problems += [*map(tuple, index["fit_problems"])]
    problems += [tuple(text.split(": ", 1)) for text in index["unmatched"]]
    fitted = None if index["fitted"] is None else Fitted(**index["fitted"])
    names = tuple(index["class_names"])
    return Judged(folder, index["name"], names, there, tuple(problems), failed, fitted, index["told"])


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing, expected a folder that `mbls judge PREDICTIONS LABELS --out` wrote")
    index = read_json(path)
    if not isinstance(index, dict) or not _is_index(index):
        raise ValueError(f"{path}: got other content than `mbls judge` wrote, expected it unchanged")
    for case in index["cases"]:
        check_file_name(path, case)
    return index


def _is_index(index: dict[str, Any]) -> bool:
    def texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)

    problems, fitted, told = index.get("fit_problems"), index.get("fitted"), index.get("told")
    return (
        isinstance(index.get("name"), str)
        and all(texts(index.get(name)) for name in ("class_names", "cases", "unmatched"))
        and all(": " in text for text in index["unmatched"])
        and isinstance(problems, list)
        and all(texts(pair) and len(pair) == 2 for pair in problems)
        and "fitted" in index
        and (fitted is None or (isinstance(fitted, dict) and set(fitted) == {one.name for one in fields(Fitted)}))
        and isinstance(told, dict)
        and {"predictions", "labels", "fit", "logits", "surface", "version"} <= set(told)
    )


def _path(folder: Path, case: str) -> Path:
    return folder / _CASES / f"{case}.npz"


def _writable(found: PredictionFolder) -> FoundPredictions:
    assert isinstance(found, FoundPredictions)  # read with labels, as judge_folder does
    return found


def _destination(write: Any, found: PredictionFolder, predictions: str | Path, fit: Any) -> Path | None:
    """Where calibrated probabilities go, with nnU-Net's descriptions of them."""
    if write is None:
        return None
    if fit is None:
        raise ValueError("write: got a folder without fit, expected validation cases to fit a temperature on")
    write, source = Path(write), Path(predictions)
    if write.resolve() == source.resolve():
        raise ValueError(f"write: got {write}, the predictions themselves, expected another folder")
    write.mkdir(parents=True, exist_ok=True)
    for name in (DESCRIPTION, "plans.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, write / name)
    return write


def _each(task: _Task, cases: Sequence[str], workers: int) -> Iterator[tuple[str, str | None]]:
    """Each case with what was wrong, in the order in which they are finished."""
    workers = min(workers, len(cases))
    if workers <= 1:
        yield from ((case, task(case)) for case in cases)
        return
    with contextlib.ExitStack() as stack:
        # Not forked: threads of torch may hold locks.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(task,))
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        waiting: dict[Future, str] = {}
        rest = iter(cases)
        try:
            while True:
                for case in itertools.islice(rest, 2 * workers - len(waiting)):
                    waiting[pool.submit(_go_on, case)] = case
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise OSError(
                f"a process died (out of memory?), expected memory for {workers} cases at once: try fewer --workers"
            ) from error


#: In a worker: what it does with each case.
_task: _Task | None = None


def _begin(task: _Task) -> None:
    global _task
    _task = task


def _go_on(case: str) -> str | None:
    assert _task is not None  # _begin ran first
    return _task(case)
