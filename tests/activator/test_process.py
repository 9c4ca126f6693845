"""An activator as a process: small, quickly there, and gone without losing what it holds."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from activator.stage import free_port
from waiting import wait_until

MEMORY_MIB = 60
START_SECONDS = 1.0


class Hello(http.server.BaseHTTPRequestHandler):
    """A replica that answers everything."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_):
        pass


class Process:
    """`python -m herdsman.activator` before a replica that is not there yet."""

    def __init__(self, *more):
        self.port, self.control, self.replica = free_port(), free_port(), free_port()
        ports = [f"--port={self.port}", f"--control-port={self.control}", "--host=127.0.0.1"]
        backend = f"--backend=http://127.0.0.1:{self.replica}"
        argv = [sys.executable, "-m", "herdsman.activator", backend, "--model=demo", *ports, *more]
        environment = {name: value for name, value in os.environ.items() if name != "HERDSMAN_API_KEY_FILE"}
        self.popen = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment)
        wait_until(lambda: self.demand() is not None, "it answers")

    def demand(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.control}/demand", timeout=5) as answer:
                return json.load(answer)
        except OSError:
            return None

    def ask(self):
        """Ask in a thread; what comes of it is in the list."""
        found = []

        def run():
            try:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{self.port}/v1/completions", b"{}", timeout=20
                ) as answer:
                    found.append((answer.status, answer.read()))
            except OSError as error:
                found.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread, found

    def start_replica(self):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", self.replica), Hello)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


@pytest.fixture
def process():
    started = []

    def start(*more):
        started.append(Process(*more))
        return started[-1]

    yield start
    for each in started:
        each.popen.kill()
        each.popen.communicate()


def test_it_is_small_and_told_to_end_it_still_answers_what_it_holds(process):
    held = process()
    thread, found = held.ask()
    wait_until(lambda: held.demand()["requests"] == 1, "the request is held")
    held.popen.send_signal(signal.SIGTERM)
    wait_until(lambda: refuses(held.port), "nothing more is taken")
    assert held.demand()["requests"] == 1, "the operator hears of it until the end"
    server = held.start_replica()
    thread.join(timeout=20)
    assert found == [(200, b"hello")]
    _, log = held.popen.communicate(timeout=20)
    server.shutdown()
    server.server_close()
    assert held.popen.returncode == 0, log
    assert "Traceback" not in log


def refuses(port):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
    except urllib.error.HTTPError:
        return False
    except OSError:
        return True
    return False


def test_it_takes_little_memory_and_time_and_a_second_signal_ends_it_at_once(process):
    began = time.process_time(), time.monotonic()
    small = process()
    took = time.monotonic() - began[1]
    status = Path(f"/proc/{small.popen.pid}/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmRSS:")]
        assert int(line.split()[1]) / 1024 < MEMORY_MIB
        assert cpu_seconds(small.popen.pid) < START_SECONDS, f"{took:.1f} s by the clock"
    small.ask()
    wait_until(lambda: small.demand()["requests"] == 1, "the request is held")
    for _ in range(2):
        small.popen.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert small.popen.wait(timeout=10) == 0


def cpu_seconds(pid):
    """What a process has computed so far: how long its start takes on an idle machine."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_a_port_that_is_taken_is_told(process):
    first = process()
    argv = [sys.executable, "-m", "herdsman.activator", "--backend=http://x:1", "--model=demo", "--host=127.0.0.1"]
    second = subprocess.run(
        [*argv, f"--port={first.port}", f"--control-port={free_port()}"], capture_output=True, text=True, timeout=20
    )
    assert second.returncode == 1
    assert "A port cannot be opened" in second.stderr
