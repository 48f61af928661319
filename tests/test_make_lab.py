"""`make lab` serves the course to this machine only, and only to whoever has its token."""

import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Its address, its token, its log."""
    if not (ROOT / ".venv" / ".installed").exists():
        pytest.skip("make has not made .venv here")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("lab") / "log"
    options = f"LAB_OPTIONS=--no-browser --allow-root --port={port} --ServerApp.port_retries=0"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["make", "lab", options], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        end = time.monotonic() + 90
        while not (found := re.search(r"http://(\S+?):\d+/lab\S*\?token=(\w+)", log.read_text())):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < end, log.read_text()[-2000:]
            time.sleep(0.3)
        yield port, found[2], log
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def answer(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as page:
            return page.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_token_opens_it_and_nothing_else_does(server):
    port, token, _ = server
    assert answer(port, f"/api/contents?token={token}") == 200
    assert answer(port, "/api/contents") == 403
    assert answer(port, f"/api/contents?token={'0' * len(token)}") == 403


def test_it_listens_on_loopback_only(server):
    port, *_ = server
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("the kernel does not list its sockets here")
    lines = [line.split() for name in ("tcp", "tcp6") for line in table.with_name(name).read_text().splitlines()[1:]]
    listening = {line[1].split(":")[0] for line in lines if line[3] == "0A" and int(line[1].split(":")[1], 16) == port}
    # 127.0.0.1 and ::1, as the kernel writes them.
    assert listening
    assert listening <= {"0100007F", "00000000000000000000000001000000"}
