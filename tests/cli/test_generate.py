"""`herdsman generate`: a batch that a kill does not set back."""

import json
import signal

import pytest

from cli.stub_server import StubServer
from waiting import wait_until


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("HERDSMAN_API_KEY", raising=False)
    started = StubServer()
    yield started
    started.close()


@pytest.fixture
def files(tmp_path):
    """The arguments that name the files, and the files."""

    class Files:
        prompts = tmp_path / "prompts.txt"
        output = tmp_path / "out" / "predictions.json"
        partial = tmp_path / "out" / "predictions.json.partial"
        arguments = ("--input", prompts, "--output", output)

        def predictions(self):
            return [(each["Input"], each["Output"]) for each in json.loads(self.output.read_text())]

    return Files()


def test_every_line_gets_its_answer_in_the_order_of_the_input(herdsman, server, files):
    lines = [f"line {number} 你好" for number in range(30)]
    files.prompts.write_text("\ufeff" + "\r\n".join([lines[0], "", "  ", *lines[1:]]) + "\n", encoding="utf-8")
    code, out, err = herdsman("generate", "--url", server.url, *files.arguments, "--parallel", "3")
    assert (code, out, err) == (0, f"30 answers are in {files.output}\n", "")
    assert files.predictions() == [(line, line.upper()) for line in lines]
    assert sorted(server.prompts) == sorted(lines)
    assert 1 <= server.most_at_once <= 3
    assert not files.partial.exists()


def test_lines_go_through_the_template_with_a_system_prompt_or_are_continued_raw(herdsman, server, files):
    files.prompts.write_text("hello there\n")
    options = ["--temperature", "0", "--top-k", "1", "--seed", "7"]
    assert herdsman("generate", "--url", server.url, *files.arguments, "--system", "Be brief.", *options)[0] == 0
    assert herdsman("generate", "--url", server.url, *files.arguments, "--raw", "--overwrite")[0] == 0
    (chat_path, chat), (raw_path, raw) = server.requests
    assert chat_path == "/v1/chat/completions"
    assert chat["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello there"}]
    assert (chat["model"], chat["temperature"], chat["top_k"], chat["seed"]) == ("demo", 0, 1, 7)
    assert (raw_path, raw["prompt"]) == ("/v1/completions", "hello there")
    assert "temperature" not in raw
    settings = json.loads(files.output.with_suffix(".settings.json").read_text())
    assert settings == {"model": "demo", "raw": True, "system": None}


def test_after_a_kill_only_what_is_missing_is_asked_for(herdsman, server, files):
    lines = [f"line {number}" for number in range(5)]
    files.prompts.write_text("\n".join(lines))
    server.plan = {"line 3": ["hold"]}
    arguments = ["generate", "--url", server.url, *files.arguments, "--parallel", "1"]
    process = herdsman.start(*arguments)
    wait_until(lambda: len(server.prompts) == 4, "the fourth line is asked")
    process.kill()
    process.communicate()
    with files.partial.open("a") as file:
        file.write('{"line": 4, "Inp')  # as a kill in the middle of a write leaves it
    server.go_on.set()
    server.requests.clear()
    code, _, err = herdsman(*arguments)
    assert (code, err) == (0, "3 of 5 lines were answered before\n")
    assert server.prompts == ["line 3", "line 4"]
    assert files.predictions() == [(line, line.upper()) for line in lines]


def test_ctrl_c_stops_at_once_and_keeps_what_was_answered(herdsman, server, files):
    files.prompts.write_text("one two\nthree four\n")
    server.plan = {"three four": ["hold"]}
    process = herdsman.start("generate", "--url", server.url, *files.arguments, "--parallel", "1")
    wait_until(lambda: len(server.prompts) == 2, "the second line is asked")
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=10)
    assert (process.returncode, told) == (130, "stopped; call again to ask for what is missing\n")
    assert "ONE TWO" in files.partial.read_text()


def test_kept_answers_of_other_settings_are_not_mixed_in(herdsman, server, files):
    files.prompts.write_text("one\nbad\n")
    server.plan = {"bad": [400]}
    assert herdsman("generate", "--url", server.url, *files.arguments)[0] == 1
    code, _, err = herdsman("generate", "--url", server.url, *files.arguments, "--temperature", "1")
    assert code == 1
    assert "holds answers with temperature None" in err


@pytest.mark.parametrize("status", [429, 503, "cut"])
def test_a_busy_server_is_asked_again(herdsman, server, files, status, monkeypatch):
    monkeypatch.setattr("herdsman.cli.chat_client._RETRY_AFTER_SECONDS", 0.0)
    files.prompts.write_text("one two\n")
    server.plan = {"one two": [status, status]}
    assert herdsman("generate", "--url", server.url, *files.arguments)[0] == 0
    assert files.predictions() == [("one two", "ONE TWO")]
    assert len(server.prompts) == 3


def test_a_line_that_is_refused_is_named_and_the_others_are_answered(herdsman, server, files):
    files.prompts.write_text("one\n\nbad\ntwo\n")
    server.plan = {"bad": [400, 400]}
    code, _, err = herdsman("generate", "--url", server.url, *files.arguments)
    assert code == 1
    assert f"{files.prompts}:3: {server.url}/v1 answered 400: no to 'bad'" in err
    assert not files.output.exists()
    server.requests.clear()
    assert herdsman("generate", "--url", server.url, *files.arguments, "--skip-errors")[0] == 1
    assert server.prompts == ["bad"]
    assert files.predictions() == [("one", "ONE"), ("bad", None), ("two", "TWO")]


def test_a_wrong_key_ends_it_at_once(herdsman, server, files, monkeypatch):
    monkeypatch.setenv("HERDSMAN_API_KEY", "wrong")
    files.prompts.write_text("".join(f"line {number}\n" for number in range(50)))
    server.plan = {f"line {number}": [401] for number in range(50)}
    code, _, err = herdsman("generate", "--url", server.url, *files.arguments)
    assert (code, "answered 401" in err, "HERDSMAN_API_KEY" in err) == (1, True, True)
    assert len(server.prompts) < 50
    assert server.headers[-1]["Authorization"] == "Bearer wrong"


def test_a_server_that_is_not_there_is_told(herdsman, server, files):
    files.prompts.write_text("one\n")
    server.close()
    code, _, err = herdsman("generate", "--url", server.url, *files.arguments)
    assert (code, "broke off" in err) == (1, True)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no instruction"),
        (b"good\n\xff\xfe\n", "prompts.txt:2: the line is not UTF-8"),
        (None, "No such file"),
    ],
)
def test_an_input_that_cannot_be_read_is_named(herdsman, server, files, content, told):
    if content is not None:
        files.prompts.write_bytes(content)
    code, _, err = herdsman("generate", "--url", server.url, *files.arguments)
    assert (code, told in err) == (1, True), err


def test_an_output_that_exists_is_not_replaced_unasked(herdsman, server, files):
    files.prompts.write_text("one\n")
    files.output.parent.mkdir()
    files.output.write_text("mine")
    code, _, err = herdsman("generate", "--url", server.url, *files.arguments)
    assert (code, "exists already" in err, files.output.read_text()) == (1, True, "mine")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--url", "nothing"], "is no address of a server"),
        (["--url", "ftp://host"], "is no address of a server"),
        (["chat", "--url", "http://host"], "both name a server"),
        ([], "no server is named"),
    ],
)
def test_a_server_is_named_once_and_well(herdsman, files, arguments, told):
    files.prompts.write_text("one\n")
    code, _, err = herdsman("generate", *arguments, *files.arguments)
    assert (code, told in err) == (2, True), err
