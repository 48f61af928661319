"""The downloader against a small Girder stand-in on loopback that also cuts connections and sends damaged files."""

import contextlib
import errno
import itertools
import json
import re
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import pytest

from mbls.__main__ import main
from mbls.data.acdc import find_patients
from mbls.data.download import _spread, download_patients
from mbls.data.layout import check_dataset


class Girder:
    """Serves a folder in the ACDC layout as ROOT -> database -> training -> patients; ``spoil`` names one misbehaviour
    a file."""

    def __init__(self, training):
        self.files = {path.name: path for path in training.rglob("*") if path.is_file() and path.name != "Info.cfg"}
        self.infos = {path.parent.name: path for path in training.rglob("Info.cfg")}
        self.patients = sorted(self.infos)
        self.requests = Counter()
        self.ranges = []
        self.spoil = {}
        self.status = None
        self.redirect = None
        self.lists = {}  # path -> the bytes that are sent instead
        self.ignore_range = False
        girder = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                girder.answer(self)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/api/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, handler):
        url = urlparse(handler.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if self.status is not None:
            handler.send_error(self.status)
        elif self.redirect is not None:
            handler.send_response(302)
            handler.send_header("Location", self.redirect)
            handler.end_headers()
        elif url.path in self.lists:
            handler.send_response(200)
            handler.end_headers()
            with contextlib.suppress(OSError):  # whoever hangs up has seen enough
                for block in self.lists[url.path]:
                    handler.wfile.write(block)
        elif url.path == "/api/v1/folder":
            children = {
                "ROOT": [("training", "TRAIN"), ("testing", "TEST")],
                "TRAIN": [(name, f"folder-{name}") for name in self.patients],
            }
            self.send_json(handler, [{"name": name, "_id": key} for name, key in children[query["parentId"]]])
        elif url.path == "/api/v1/item":
            patient = query["folderId"].removeprefix("folder-")
            names = [
                ("Info.cfg", self.infos[patient]),
                *((n, p) for n, p in self.files.items() if n.startswith(patient)),
            ]
            names.append((f"{patient}_4d.nii.gz", None))
            items = [{"name": n, "_id": f"{patient}--{n}", "size": p.stat().st_size if p else 10**9} for n, p in names]
            self.send_json(handler, items)
        else:
            patient, name = re.fullmatch(r"/api/v1/item/(.*)--(.*)/download", url.path).groups()
            self.send_file(
                handler, name, (self.infos[patient] if name == "Info.cfg" else self.files[name]).read_bytes()
            )

    @staticmethod
    def send_json(handler, value):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(json.dumps(value).encode())

    def send_file(self, handler, name, data):
        self.requests[name] += 1
        start = 0
        wanted = handler.headers.get("Range")
        if wanted and not self.ignore_range:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted).group(1))
            self.ranges.append((name, start))
        body = data[start:]
        how = self.spoil.get(name, [])
        spoilt = how.pop(0) if how else None
        if spoilt == "page":  # a proxy's, in the place of the file
            body = b"<html>please log in</html>".ljust(len(body))
        handler.send_response(206 if start else 200)
        if spoilt not in ("endless", "drip"):
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if spoilt == "cut":  # the connection breaks in the middle
            handler.wfile.write(body[: len(body) // 2])
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif spoilt == "garble":  # the right length, damaged content
            handler.wfile.write(bytes(len(body)))
        elif spoilt in ("endless", "drip"):
            with contextlib.suppress(OSError):  # until the other side hangs up
                for place in itertools.count():
                    handler.wfile.write(body[place : place + 1] if spoilt == "drip" else bytes(1 << 16))
                    handler.wfile.flush()
                    time.sleep(0.02 if spoilt == "drip" else 0)
        else:
            handler.wfile.write(body)


@pytest.fixture
def girder(phantom_root):
    server = Girder(phantom_root / "training")
    yield server
    server.server.shutdown()
    server.server.server_close()


def download(girder, out, patients=2, tries=4):
    return download_patients(out, patients, girder.url, "ROOT", tries=tries, wait=0.01, timeout=5)


def leftovers(out):
    return [path.name for path in out.rglob("*") if path.name.endswith(".part") or path.name == ".waiting"]


def test_downloads_some_patients_whole(girder, tmp_path):
    out = download(girder, tmp_path / "acdc")
    assert [patient.id for patient in find_patients(out)] == ["patient001", "patient002"]
    assert check_dataset(out) == {"patient001": [], "patient002": []}
    assert leftovers(out) == []
    # Two frames with labels and one Info.cfg a patient: neither the 4-D series nor anything else.
    assert sum(girder.requests.values()) == 2 * 5
    assert not any("4d" in name for name in girder.requests)


def test_a_second_run_fetches_nothing_and_more_patients_only_add(girder, tmp_path):
    download(girder, tmp_path / "acdc")
    girder.requests.clear()
    download(girder, tmp_path / "acdc")
    assert sum(girder.requests.values()) == 0
    download(girder, tmp_path / "acdc", patients=3)
    assert sum(girder.requests.values()) == 5


def test_goes_on_after_cut_connections(girder, tmp_path):
    name = "patient001_frame01.nii.gz"
    girder.spoil[name] = ["cut", "cut"]
    out = download(girder, tmp_path / "acdc", 1)
    assert check_dataset(out) == {"patient001": []}
    assert girder.requests[name] == 3
    starts = [start for what, start in girder.ranges if what == name]
    assert len(starts) == 2
    assert 0 < starts[0] < starts[1]


def test_a_server_without_ranges_starts_the_file_anew(girder, tmp_path):
    girder.ignore_range = True
    girder.spoil["patient001_frame01.nii.gz"] = ["cut"]
    assert check_dataset(download(girder, tmp_path / "acdc", 1)) == {"patient001": []}


def test_damaged_content_is_thrown_away_and_fetched_again(girder, tmp_path):
    girder.spoil["patient001_frame11_gt.nii.gz"] = ["garble"]
    assert check_dataset(download(girder, tmp_path / "acdc", 1)) == {"patient001": []}
    assert girder.requests["patient001_frame11_gt.nii.gz"] == 2


def test_gives_up_with_the_manual_steps_and_resumes_later(girder, tmp_path):
    out = tmp_path / "acdc"
    name = "patient001_frame11.nii.gz"
    girder.spoil[name] = ["cut"] * 2
    with pytest.raises(ConnectionError, match=rf"{name} failed 2 times[\s\S]*by hand[\s\S]*python -m mbls check"):
        download(girder, out, 1, tries=2)
    with pytest.raises(FileNotFoundError):
        find_patients(out)[0]  # a half patient does not count as one
    assert f".{name}.part" in leftovers(out)
    assert check_dataset(download(girder, out, 1)) == {"patient001": []}
    assert leftovers(out) == []
    assert girder.requests["patient001_frame01.nii.gz"] == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_no_is_final(girder, tmp_path, status):
    girder.status = status
    with pytest.raises(ConnectionError, match=rf"says {status}[\s\S]*by hand"):
        download(girder, tmp_path / "acdc")
    assert not (tmp_path / "acdc").exists()


def test_a_page_instead_of_info_is_said_and_the_next_run_goes_on(girder, tmp_path):
    girder.spoil["Info.cfg"] = ["page"]
    with pytest.raises(ConnectionError, match=r"another file than Info\.cfg for patient001 [\s\S]*no entry 'ED'"):
        download(girder, tmp_path / "acdc", 1)
    assert check_dataset(download(girder, tmp_path / "acdc", 1)) == {"patient001": []}
    assert leftovers(tmp_path / "acdc") == []


@pytest.mark.parametrize("how", ["endless", "drip"])
def test_what_never_ends_is_ended(girder, tmp_path, how):
    """More bytes than announced, or a byte now and then: another attempt, after a bounded time and space."""
    name = "patient001_frame01.nii.gz"
    girder.spoil[name] = [how]
    out = download_patients(tmp_path / "acdc", 1, girder.url, "ROOT", tries=2, wait=0.01, timeout=0.5)
    assert check_dataset(out) == {"patient001": []}
    girder.spoil[name] = [how, how]
    (out / "training" / "patient001" / name).unlink()
    (out / "training" / "patient001" / "Info.cfg").unlink()
    message = r"more bytes than the \d+ expected" if how == "endless" else "expected a kilobyte a second"
    with pytest.raises(ConnectionError, match=message):
        download_patients(out, 1, girder.url, "ROOT", tries=2, wait=0.01, timeout=0.5)
    assert sum(path.stat().st_size for path in out.rglob(".*.part")) < 1 << 20


ODD_LISTS = {
    "null": b"null",
    "a dict": b'{"name": "patient001"}',
    "no names": b'[{"_id": "a"}]',
    "numbers": b"[1, 2]",
    "a size of letters": b'[{"name": "patient001", "_id": "a", "size": "b"}]',
    "a negative size": b'[{"name": "patient001", "_id": "a", "size": -1}]',
    "nested": b"[" * 100_000,
    "a page": b"<html></html>",
}


@pytest.mark.parametrize("content", ODD_LISTS.values(), ids=ODD_LISTS)
@pytest.mark.parametrize("kind", ["folder", "item"])
def test_odd_lists_are_refused(girder, tmp_path, content, kind):
    girder.lists[f"/api/v1/{kind}"] = [content]
    with pytest.raises(ConnectionError, match=r"failed 2 times .*(no JSON|expected a list|expected a name)"):
        download(girder, tmp_path / "acdc", tries=2)


def test_a_list_without_end_is_not_kept(girder, tmp_path):
    girder.lists["/api/v1/folder"] = iter(lambda: b" " * (1 << 20), None)
    with pytest.raises(ConnectionError, match=r"got more than 16777216 bytes, expected a list"):
        download(girder, tmp_path / "acdc", tries=1)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a"])
def test_a_redirection_elsewhere_is_not_followed(girder, tmp_path, target):
    girder.redirect = target
    with pytest.raises(
        ConnectionError, match=rf"(redirects to {target}, expected http or https|url '{target}' is not allowed)"
    ):
        download(girder, tmp_path / "acdc")


def test_a_full_disk_is_not_the_servers_fault(girder, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(OSError, match="No space left"):
            download(girder, tmp_path / "acdc", 1)
        assert sum(girder.requests.values()) == 1
        command = ["download", "--out", str(tmp_path / "acdc"), "--server", girder.url, "--folder", "ROOT"]
        assert main([*command, "--patients", "1"]) == 2
        assert capsys.readouterr().err.endswith("\nmbls download: [Errno 28] No space left on device\n")
    assert check_dataset(download(girder, tmp_path / "acdc", 1)) == {"patient001": []}


def test_server_errors_are_tried_again(girder, tmp_path):
    girder.status = 503
    with pytest.raises(ConnectionError, match=r"failed 4 times \(last: HTTPError: HTTP Error 503"):
        download(girder, tmp_path / "acdc")


def test_more_patients_than_there_are(girder, tmp_path):
    with pytest.raises(ValueError, match="num_patients: got 6, expected at most the 5"):
        download(girder, tmp_path / "acdc", 6)
    with pytest.raises(ValueError, match="num_patients: got 0"):
        download(girder, tmp_path / "acdc", 0)


def test_patients_are_spread_over_the_groups():
    names = [f"patient{number:03d}" for number in range(1, 101)]
    assert _spread(names)[:6] == ["patient001", "patient021", "patient041", "patient061", "patient081", "patient002"]
    assert sorted(_spread(names[:7])) == names[:7]


def test_command(girder, tmp_path, capsys):
    command = ["download", "--out", str(tmp_path / "acdc"), "--server", girder.url, "--folder", "ROOT", "--patients"]
    assert main([*command, "1"]) == 0
    assert main([*command, "9"]) == 2
    assert "--patients: got 9" in capsys.readouterr().err
