"""`herdsman chat` in a terminal, against a server that says what a test wants."""

import contextlib
import fcntl
import io
import json
import os
import pty
import subprocess
import sys
import termios

import pytest

from cli.stub_server import StubServer
from waiting import wait_until


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("HERDSMAN_API_KEY", raising=False)
    started = StubServer()
    yield started
    started.close()


class Terminal:
    """`herdsman chat` with a terminal of its own."""

    def __init__(self, tmp_path, *arguments):
        self._here, there = pty.openpty()
        command = [sys.executable, "-c", "from herdsman.cli import main; main()", "chat", *arguments]
        environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "dumb"}
        self.process = subprocess.Popen(
            command,
            stdin=there,
            stdout=there,
            stderr=there,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(there)
        os.set_blocking(self._here, False)
        self.seen = ""

    def shows(self, text):
        """Wait until the terminal shows a text that was not waited for yet."""

        def seen():
            with contextlib.suppress(OSError):
                self.seen += os.read(self._here, 65536).decode()
            return text in self.seen

        wait_until(seen, f"the terminal shows {text!r}, not {self.seen!r}", seconds=20)
        before, self.seen = self.seen.split(text, 1)
        return before

    def type(self, text):
        os.write(self._here, text.encode())

    def end(self):
        self.type("\x04")
        code = self.process.wait(timeout=10)
        os.close(self._here)
        return code


@pytest.fixture
def terminal(tmp_path, server):
    opened = []

    def start(*arguments):
        opened.append(Terminal(tmp_path, "--url", server.url, *arguments))
        opened[-1].shows("Ctrl-D ends.")
        opened[-1].shows("> ")
        return opened[-1]

    yield start
    for each in opened:
        each.process.kill()
        each.process.wait()


def test_a_conversation_with_its_commands(terminal, server, tmp_path):
    chat = terminal("--system", "Be brief.", "--temperature", "0.5")
    chat.type("one \\\n")
    chat.shows("… ")
    chat.type("two\n")
    chat.shows("ONE TWO")
    chat.type('"""a\n\nb"""\n')
    chat.shows("A B")
    assert server.requests[-1][1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one \ntwo"},
        {"role": "assistant", "content": "ONE TWO "},
        {"role": "user", "content": "a\n\nb"},
    ]
    assert server.requests[-1][1]["temperature"] == 0.5
    chat.type("/retry\n")
    chat.shows("A B")
    assert server.requests[-1][1] == server.requests[-2][1]
    chat.type(f"/save {tmp_path / 'said.json'}\n")
    chat.shows("4 messages are in")
    said = json.loads((tmp_path / "said.json").read_text())
    assert [each["role"] for each in said["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    chat.type("/system\n/new\nthree\n")
    chat.shows("THREE")
    assert server.requests[-1][1]["messages"] == [{"role": "user", "content": "three"}]
    chat.type("/nonsense\n")
    chat.shows("/nonsense is no command; there are /system")
    assert chat.end() == 0
    history = tmp_path / "herdsman" / "chat_history"
    assert "three" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal, server):
    server.plan = {"one two three": ["hold"]}
    chat = terminal()
    chat.type("one two three\n")
    chat.shows("ONE")
    chat.type("\x03")
    chat.shows("(stopped)")
    chat.type("go on\n")
    chat.shows("GO ON")
    assert [each["content"] for each in server.requests[-1][1]["messages"]] == ["one two three", "ONE ", "go on"]
    chat.shows("> ")
    chat.type("half a line")
    chat.shows("half a line")
    chat.type("\x03")
    chat.shows("> ")
    chat.type("whole\n")
    chat.shows("WHOLE")
    assert server.prompts[-1] == "whole"
    assert chat.end() == 0


def test_an_error_is_told_and_the_conversation_goes_on_without_that_question(terminal, server):
    server.plan = {"bad": [400], "half a word": ["cut"]}
    chat = terminal()
    for question, told in [("bad", "answered 400: no to 'bad'"), ("half a word", "broke off"), ("good", "GOOD")]:
        chat.type(f"{question}\n")
        chat.shows(told)
    assert [each["content"] for each in server.requests[-1][1]["messages"]] == ["good"]
    assert chat.end() == 0


def test_one_question_is_answered_and_that_is_all(herdsman, server, monkeypatch):
    monkeypatch.setenv("HERDSMAN_API_KEY", "sesame")
    assert herdsman("chat", "--url", f"{server.url}/v1/", "one two", "--max-tokens", "9") == (0, "ONE TWO \n", "")
    ((path, body),) = server.requests
    assert (path, body["model"], body["max_tokens"], body["stream"]) == ("/v1/chat/completions", "demo", 9, True)
    assert [each["Authorization"] for each in server.headers] == ["Bearer sesame"] * 2


def test_questions_come_through_a_pipe(herdsman, server, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    assert herdsman("chat", "--url", server.url) == (0, "ONE \nTWO \n", "")
    server.plan = {"bad": [400]}
    monkeypatch.setattr(sys, "stdin", io.StringIO("bad\ntwo\n"))
    assert herdsman("chat", "--url", server.url)[0] == 1


def test_a_url_that_is_not_openais_api_is_told(herdsman, server, monkeypatch):
    monkeypatch.setattr("cli.stub_server.json.dumps", lambda *_, **__: "<html>")
    code, _, err = herdsman("chat", "--url", server.url, "one")
    assert (code, "does not list models as OpenAI's API does" in err) == (1, True)
