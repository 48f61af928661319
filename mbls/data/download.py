"""Download some patients of ACDC from its official server (Girder): only the frames that are used, resumable, checked.

A file is fetched under a temporary name, ``.NAME.part``, which is kept so that a later call can resume. It is renamed
only after it was checked, so a file under its real name is complete.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mbls.data.acdc import PHASES, find_patients

__all__ = ["FOLDER", "SERVER", "download_patients"]

#: The challenge's own server and its folder of the data set, as quoted by public projects.
SERVER = "https://humanheart-project.creatis.insa-lyon.fr/database/api/v1"
FOLDER = "637218e573e9f0047faa00fc"

_MANUAL = """To get the data by hand:
  1. open https://www.creatis.insa-lyon.fr/Challenge/acdc/databases.html in a browser and follow it to the database,
  2. download the data set and unpack it,
  3. copy training/patientXXX (Info.cfg, patientXXX_frameNN.nii.gz, patientXXX_frameNN_gt.nii.gz) to {out}/training,
  4. run: python -m mbls check {out}"""


def download_patients(
    out: str | Path,
    num_patients: int = 15,
    server: str | None = None,
    folder: str | None = None,
    tries: int = 5,
    wait: float = 2.0,
    timeout: float = 60.0,
) -> Path:
    """Fetch ED and ES (image and labels) of some training patients. Files that exist are not fetched again.

    The patients are spread over the five groups: 1, 21, 41, 61, 81, 2, 22, ... where the server has 100.

    Args:
        out: folder; files go to ``out/training/patientXXX``.
        num_patients: how many, >= 1.
        server: root of the API; None is :data:`SERVER`.
        folder: identifier of the data set's folder; None is :data:`FOLDER`.
        tries: attempts for each file; each one resumes where the last one stopped.
        wait: seconds before the second attempt; doubled for each further one.
        timeout: seconds to wait for an answer.

    Returns:
        The folder ``out``.

    Raises:
        ValueError: num_patients < 1, or more than the server has.
        ConnectionError: the server cannot be reached, refuses, or keeps sending damaged files. The message lists the
            steps to get the data by hand.
    """
    if num_patients < 1:
        raise ValueError(f"num_patients: got {num_patients}, expected at least 1")
    out = Path(out)
    api = _Girder(server or SERVER, tries, wait, timeout)
    try:
        available = dict(api.patient_folders(folder or FOLDER))
        if num_patients > len(available):
            raise ValueError(
                f"num_patients: got {num_patients}, expected at most the {len(available)} patients on the server"
            )
        chosen = _spread(sorted(available))[:num_patients]
        with tqdm(total=num_patients, desc="download", unit="patient") as bar:
            for name in chosen:
                bar.set_postfix_str(name)
                _download_patient(api, available[name], out / "training" / name)
                bar.update()
    except _ServerError as error:
        raise ConnectionError(f"{error}\n{_MANUAL.format(out=out)}") from error
    return out


class _ServerError(Exception):
    """What the server said or did, in words."""


class _Girder:
    """The few calls of Girder's REST interface that are needed."""

    def __init__(self, root: str, tries: int, wait: float, timeout: float) -> None:
        self.root, self.tries, self.wait, self.timeout = root.rstrip("/"), tries, wait, timeout

    def open(self, path: str, start: int = 0) -> http.client.HTTPResponse:
        request = urllib.request.Request(f"{self.root}/{path}")
        if start:
            request.add_header("Range", f"bytes={start}-")
        return urllib.request.urlopen(request, timeout=self.timeout)

    def attempts(self, what: str) -> Iterator[_Attempt]:
        """Retry after errors that may pass (lost connections, 5xx, damaged files); stop if the server refuses."""
        last = ""
        for number in range(self.tries):
            if number:
                time.sleep(self.wait * 2 ** (number - 1))
            attempt = _Attempt()
            yield attempt
            if attempt.done:
                return
            error = attempt.error
            last = f"{type(error).__name__}: {error}"
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 416, 429):
                raise _ServerError(f"{self.root} says {error.code} {error.reason} to {what}")
        raise _ServerError(f"{self.root}: {what} failed {self.tries} times (last: {last})")

    def json(self, path: str) -> Any:
        for attempt in self.attempts(path):
            with attempt, self.open(path) as answer:
                return json.load(answer)
        raise AssertionError("attempts either succeeds or raises")

    def patient_folders(self, folder: str, depth: int = 2) -> Iterator[tuple[str, str]]:
        """(patientXXX, identifier) of the training patients below a folder."""
        query = urllib.parse.urlencode({"parentType": "folder", "parentId": folder, "limit": 0})
        children = self.json(f"folder?{query}")
        patients = [(child["name"], child["_id"]) for child in children if re.fullmatch(r"patient\d+", child["name"])]
        yield from patients
        if patients or depth == 0:
            return
        for child in children:
            if child["name"].lower() != "testing":
                yield from self.patient_folders(child["_id"], depth - 1)

    def items(self, folder: str) -> dict[str, dict[str, Any]]:
        query = urllib.parse.urlencode({"folderId": folder, "limit": 0})
        return {item["name"]: item for item in self.json(f"item?{query}")}

    def fetch(self, item: dict[str, Any], path: Path) -> None:
        """Download an item to a path unless the file exists; resume from ``.NAME.part`` if there is one."""
        if path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        size = item.get("size")
        for attempt in self.attempts(item["name"]):
            with attempt:
                have = part.stat().st_size if part.is_file() else 0
                if size is not None and have > size:
                    part.unlink()
                    have = 0
                if size is None or have < size:
                    with self.open(f"item/{item['_id']}/download", have) as answer:
                        # A server that ignores the range answers 200 with the whole file.
                        mode = "ab" if have and answer.status == 206 else "wb"
                        with part.open(mode) as file:
                            while block := answer.read(1 << 16):
                                file.write(block)
                _require_complete(part, size, path.name)
                os.replace(part, path)


class _Attempt:
    """One try. It suppresses errors that may pass, so that the loop around it can continue."""

    def __init__(self) -> None:
        self.done = False
        self.error: BaseException | None = None

    def __enter__(self) -> _Attempt:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> bool:
        self.done, self.error = error is None, error
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection open
        return isinstance(error, (OSError, http.client.HTTPException, json.JSONDecodeError, _Damaged))


class _Damaged(Exception):
    """A file that arrived short or broken."""


def _require_complete(part: Path, size: int | None, name: str) -> None:
    have = part.stat().st_size
    if size is not None and have < size:
        raise _Damaged(f"{name}: got {have} bytes, expected {size}")
    if name.endswith(".gz"):
        try:
            with gzip.open(part) as file:
                while file.read(1 << 20):
                    pass
        except (EOFError, OSError, zlib.error) as error:
            part.unlink()  # nothing to resume from
            raise _Damaged(f"{name}: damaged gzip ({error})") from error


def _spread(names: list[str]) -> list[str]:
    """Patients in turn from five equal parts of the list, which are ACDC's five groups."""
    fifth = -(-len(names) // 5)
    return [
        names[group * fifth + place]
        for place in range(fifth)
        for group in range(5)
        if group * fifth + place < len(names)
    ]


def _download_patient(api: _Girder, folder: str, target: Path) -> None:
    """Fetch Info.cfg first, since it names the frames, but put it in place last: a patient without it is not read."""
    if (target / "Info.cfg").is_file():
        return
    items = api.items(folder)
    _require_item(items, "Info.cfg", target.name)
    waiting = target / ".waiting" / target.name / "Info.cfg"
    api.fetch(items["Info.cfg"], waiting)
    (patient,) = find_patients(waiting.parents[1])
    for phase in PHASES:
        for kind in ("image", "labels"):
            name = patient.path(phase, kind).name
            _require_item(items, name, target.name)
            api.fetch(items[name], target / name)
    os.replace(waiting, target / "Info.cfg")
    waiting.parent.rmdir()
    waiting.parents[1].rmdir()


def _require_item(items: dict[str, dict[str, Any]], name: str, patient: str) -> None:
    if name not in items:
        raise _ServerError(f"{patient} has no {name} on the server (it has {', '.join(sorted(items)) or 'nothing'})")
