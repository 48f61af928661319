"""Download some patients of ACDC from its official server (Girder): only the frames that are used, resumable, checked.

A file is fetched under a temporary name, ``.NAME.part``, which is kept so that a later call can resume. It is renamed
only after it was checked, so a file under its real name is complete. What a server sends is taken within limits: no
byte more than it announced, no list above 16 MiB, no less than a kilobyte a second, no redirection to another protocol.
"""

from __future__ import annotations

import errno
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

from mbls.data.acdc import PHASES, find_patients
from mbls.files import MAX_BYTES, MAX_TEXT
from mbls.progress import progress_bar

__all__ = ["FOLDER", "SERVER", "download_patients"]

#: The challenge's own server and its folder of the data set, as quoted by public projects.
SERVER = "https://humanheart-project.creatis.insa-lyon.fr/database/api/v1"
FOLDER = "637218e573e9f0047faa00fc"
#: Bytes a second, over :class:`_Girder`'s timeout, below which a server counts as silent.
_SLOWEST = 1024
#: Errors of our own disk, which another attempt does not mend.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
_OF_THE_DISK |= {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}

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
        timeout: seconds to wait for an answer, or for a kilobyte for each of them.

    Returns:
        The folder ``out``.

    Raises:
        ValueError: num_patients < 1, or more than the server has.
        ConnectionError: the server cannot be reached, refuses, or keeps sending what is not expected. The message lists
            the steps to get the data by hand.
        OSError: no space or no permission here.
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
        with progress_bar(total=num_patients, desc="download", unit="patient") as bar:
            for name in chosen:
                bar.set_postfix_str(name)
                _download_patient(api, available[name], out / "training" / name)
                bar.update()
    except _ServerError as error:
        raise ConnectionError(f"{error}\n{_MANUAL.format(out=out)}") from error
    return out


class _SameProtocol(urllib.request.HTTPRedirectHandler):
    """Follow the server to another address, but not from https to http, nor to anything else."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        allowed = ("https",) if req.type == "https" else ("http", "https")
        if urllib.parse.urlsplit(newurl).scheme not in allowed:
            fp.close()  # it holds the connection open
            raise _ServerError(f"{req.full_url} redirects to {newurl}, expected {' or '.join(allowed)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _ServerError(Exception):
    """What the server said or did, in words."""


class _Girder:
    """The few calls of Girder's REST interface that are needed."""

    def __init__(self, root: str, tries: int, wait: float, timeout: float) -> None:
        self.root, self.tries, self.wait, self.timeout = root.rstrip("/"), tries, wait, timeout
        self.opener = urllib.request.build_opener(_SameProtocol)

    def open(self, path: str, start: int = 0) -> http.client.HTTPResponse:
        request = urllib.request.Request(f"{self.root}/{path}")
        if start:
            request.add_header("Range", f"bytes={start}-")
        return self.opener.open(request, timeout=self.timeout)

    def blocks(self, answer: http.client.HTTPResponse, what: str) -> Iterator[bytes]:
        """What the server sends, as it comes, unless it comes too slowly."""
        since, received = time.monotonic(), 0
        while block := answer.read1(1 << 16):
            yield block
            received += len(block)
            now = time.monotonic()
            if now - since > self.timeout:
                if received < _SLOWEST * (now - since):
                    raise _Damaged(f"{what}: got {received} bytes in {now - since:.0f} s, expected a kilobyte a second")
                since, received = now, 0

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

    def entries(self, path: str) -> list[dict[str, Any]]:
        """A list of the server's: folders or items, each with its name and identifier."""
        for attempt in self.attempts(path):
            with attempt, self.open(path) as answer:
                content = bytearray()
                for block in self.blocks(answer, path):
                    content += block
                    if len(content) > MAX_TEXT:
                        raise _Damaged(f"{path}: got more than {MAX_TEXT} bytes, expected a list")
                return _checked_entries(bytes(content), path)
        raise AssertionError("attempts either succeeds or raises")

    def patient_folders(self, folder: str, depth: int = 2) -> Iterator[tuple[str, str]]:
        """(patientXXX, identifier) of the training patients below a folder."""
        query = urllib.parse.urlencode({"parentType": "folder", "parentId": folder, "limit": 0})
        children = self.entries(f"folder?{query}")
        patients = [(child["name"], child["_id"]) for child in children if re.fullmatch(r"patient\d+", child["name"])]
        yield from patients
        if patients or depth == 0:
            return
        for child in children:
            if child["name"].lower() != "testing":
                yield from self.patient_folders(child["_id"], depth - 1)

    def items(self, folder: str) -> dict[str, dict[str, Any]]:
        query = urllib.parse.urlencode({"folderId": folder, "limit": 0})
        return {item["name"]: item for item in self.entries(f"item?{query}")}

    def fetch(self, item: dict[str, Any], path: Path) -> None:
        """Download an item to a path unless the file exists; resume from ``.NAME.part`` if there is one."""
        if path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        size = item.get("size")
        most = MAX_BYTES if size is None else size
        for attempt in self.attempts(item["name"]):
            with attempt:
                have = part.stat().st_size if part.is_file() else 0
                if size is not None and have > size:
                    part.unlink()
                    have = 0
                if size is None or have < size:
                    with self.open(f"item/{urllib.parse.quote(item['_id'], safe='')}/download", have) as answer:
                        # A server that ignores the range answers 200 with the whole file.
                        mode = "ab" if have and answer.status == 206 else "wb"
                        with part.open(mode) as file:
                            for block in self.blocks(answer, path.name):
                                file.write(block)
                                if file.tell() > most:
                                    file.truncate(0)  # nothing to resume from
                                    raise _Damaged(f"{path.name}: got more bytes than the {most} expected")
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
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:  # the network's own come without a number
            return False
        return isinstance(error, (OSError, http.client.HTTPException, _Damaged))


class _Damaged(Exception):
    """A file or a list that arrived short, broken, or too large."""


def _checked_entries(content: bytes, path: str) -> list[dict[str, Any]]:
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"{path}: no JSON ({error})") from error
    if not isinstance(entries, list):
        raise _Damaged(f"{path}: got {str(entries)[:80]}, expected a list")
    for entry in entries:
        named = isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "_id"))
        size = entry.get("size") if named else 0
        if not named or not (size is None or (isinstance(size, int) and 0 <= size <= MAX_BYTES)):
            raise _Damaged(f"{path}: got {str(entry)[:80]}, expected a name, an _id and a size")
    return entries


def _require_complete(part: Path, size: int | None, name: str) -> None:
    have = part.stat().st_size
    if size is not None and have < size:
        raise _Damaged(f"{name}: got {have} bytes, expected {size}")
    if name.endswith(".gz"):
        try:
            with gzip.open(part) as file:
                unpacked = 0
                while block := file.read(1 << 20):
                    unpacked += len(block)
                    if unpacked > MAX_BYTES:
                        raise EOFError(f"more than {MAX_BYTES} bytes when unpacked")
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
    try:
        (patient,) = find_patients(waiting.parents[1])
    except ValueError as error:  # such as a page that says "please log in"
        waiting.unlink()
        raise _ServerError(f"the server sent another file than Info.cfg for {target.name} ({error})") from error
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
