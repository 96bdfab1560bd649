"""`twcli sample --server` against a small server that answers as OpenAI's does; test_export.py has
`transformers serve`.
"""

import json
import os
import re
import signal
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.conftest import write_jsonl
from tests.test_cli import ok, refused, twcli
from twcli.models import served


class Standin(ThreadingHTTPServer):
    """Answers with the prompt and the seed. Fails as `failures` says.

    Attributes:
        requests: path and body of each request for a completion, in the order of arrival.
        failures: what the next requests get instead: a status, or "drop" for a lost connection.
        dies_after: completions until it drops every connection.
        then: a number of completions, and what is done at it.
        together: requests that wait for each other.
        most: requests that were there at once.
    """

    # a queue of connections longer than `--concurrency`
    request_queue_size = 128

    def __init__(self, handler=None):
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.requests, self.failures, self.dies_after = [], [], None
        self.together, self.now, self.most, self.answered = None, 0, 0, 0
        self.then, self.dead, self.models = None, False, 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_):
        pass  # clients that went away


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.server.models += 1
        self.answer(404, {"detail": "no list here"})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append((self.path, body))
            server.now += 1
            server.most = max(server.most, server.now)
            failure = server.failures.pop(0) if server.failures else None
            server.dead |= server.dies_after is not None and server.answered >= server.dies_after
        try:
            if failure == "drop" or server.dead:
                self.close_connection = True
                self.connection.close()
            elif isinstance(failure, int):
                error = {"error": {"message": f"says\n {failure}"}}
                self.answer(failure, error, Retry_After="0.01")
            elif failure is not None:
                self.answer(200, failure)
            else:
                if server.together:
                    server.together.wait()
                self.complete(body)
        finally:
            with server.lock:
                server.now -= 1

    def complete(self, body):
        with self.server.lock:
            self.server.answered += 1
            if self.server.then and self.server.answered == self.server.then[0]:
                self.server.then[1]()
        seed = body["seed"]
        if "messages" in body:
            x = body["messages"][-1]["content"]
            text = "" if x.endswith("silent") else f"{x} {seed}"
            choice = {"message": {"role": "assistant", "content": text}}
        else:
            choice = {"text": f"{body['prompt']} {seed}{body.get('stop', '')}"}
        reason = "length" if body.get("max_tokens") == 1 else "stop"
        self.answer(200, {"choices": [{"index": 0, "finish_reason": reason, **choice}]})


@contextmanager
def running(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server():
    with running(Standin()) as server:
        yield server


@pytest.fixture
def prompts(tmp_path):
    return write_jsonl(tmp_path / "prompts.jsonl", [{"x": f"frage {i} ü"} for i in range(40)])


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_each_prompt_gets_its_completions_in_order_with_seeds_of_their_own(server, prompts):
    flags = ("--server", server.url, "--model", "m", "--data", prompts, "-n", 3)
    lines = lines_of(ok("sample", *flags, "--latent", "code", "--temperature", 0.5).stdout)
    assert [line["x"] for line in lines] == [f"frage {i} ü" for i in range(40) for _ in range(3)]
    assert all(line["y"].startswith(line["x"]) and line["latent"] == "code" for line in lines)
    seeds = [int(line["y"].split()[-1]) for line in lines]
    assert len(set(seeds)) == 120 and 0 <= min(seeds) and max(seeds) < 2**31
    path, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert body["messages"][0] == {"role": "system", "content": "latent: code"}
    assert body["messages"][1]["role"] == "user"
    assert (body["model"], body["temperature"], body["top_p"]) == ("m", 0.5, 1.0)
    assert "max_tokens" not in body
    again = lines_of(ok("sample", *flags, "--latent", 2, "--concurrency", 1).stdout)
    assert [line["y"] for line in again] == [line["y"] for line in lines]
    assert {line["latent"] for line in again} == {2}


@pytest.mark.slow
def test_as_many_requests_as_allowed_are_on_their_way_at_once(server, prompts):
    server.together = threading.Barrier(5, timeout=60)  # answers none before it has five
    flags = ("--server", server.url, "--model", "m", "--data", prompts)
    ok("sample", *flags, "--concurrency", 5)
    assert server.most == 5


def test_a_template_file_makes_raw_prompts(server, prompts, tmp_path):
    frame = tmp_path / "frame.txt"
    frame.write_text("Q: {x}\nA:{z} {y}\n\n")
    flags = ("--server", server.url + "/v1/", "--model", "m", "--x", "warum?", "--template", frame)
    result = ok("sample", *flags, "--max-new-tokens", 1)
    (line,) = lines_of(result.stdout)
    assert "1 of 1 completions were cut off" in result.stderr
    ((path, body),) = server.requests
    assert (path, body["prompt"], body["stop"]) == ("/v1/completions", "Q: warum?\nA: ", "\n")
    assert body["max_tokens"] == 1
    assert line == {"x": "warum?", "y": f"Q: warum?\nA:  {body['seed']}"}


@pytest.mark.slow
def test_what_passes_is_tried_again(server, prompts):
    server.failures = [500, 429, "drop", 503, 408, "drop"]
    flags = ("--server", server.url, "--model", "m", "--data", prompts)
    result = ok("sample", *flags, "--concurrency", 4)
    assert [line["x"] for line in lines_of(result.stdout)] == [f"frage {i} ü" for i in range(40)]
    assert len(server.requests) == 46


@pytest.mark.slow
def test_a_server_that_dies_ends_in_one_line_and_the_same_command_resumes(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr(served, "TRIES", 1)
    data = write_jsonl(tmp_path / "p.jsonl", [{"x": f"frage {i}"} for i in range(100)])
    flags = ("sample", "--server", server.url, "--model", "m", "--data", data, "-n", 4)
    out = tmp_path / "out.jsonl"
    server.dies_after = 150
    result = twcli(*flags, "--out", out, "--quiet")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "the server does not answer" in line and "run the same command again to resume" in line
    assert not out.exists()
    # then it is killed, too
    server.dies_after, server.dead = None, False
    server.then = (290, lambda: os.kill(os.getpid(), signal.SIGTERM))
    result = twcli(*flags, "--out", out)
    assert result.exit_code == 143
    assert "resuming: " in result.stderr and "interrupted; finished blocks of 16" in result.stderr
    answered = server.answered
    assert ok(*flags, "--out", out).stderr.endswith(f"{out}: 400 completions\n")
    # neither lost nor doubled, and hardly drawn twice
    assert server.answered <= 400 + 2 * (3 * 64 + 32)
    assert answered < 400
    whole = lines_of(out.read_text())
    assert [line["x"] for line in whole] == [f"frage {i}" for i in range(100) for _ in range(4)]
    assert len({line["y"] for line in whole}) == 400
    server.url = server.url.replace("127.0.0.1", "localhost")  # a server may move
    assert "exists; --overwrite replaces it" in twcli(*flags, "--out", out).stderr
    (undisturbed := tmp_path / "again.jsonl").write_text(ok(*flags).stdout)
    assert undisturbed.read_bytes() == out.read_bytes()


@pytest.mark.slow
def test_blocks_of_another_command_are_not_gone_on_with(server, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(served, "TRIES", 1)
    out, server.dies_after = tmp_path / "out.jsonl", 130
    flags = ("sample", "--server", server.url, "--data", prompts, "-n", 4, "--out", out)
    assert twcli(*flags, "--model", "m").exit_code == 1
    server.dies_after, server.dead = None, False
    result = ok(*flags, "--model", "other")
    assert "an unfinished sample was discarded: model differs" in result.stderr
    assert {body["model"] for _, body in server.requests[-160:]} == {"other"}


def test_conversations_go_with_their_tools_and_calls_come_back(server, tmp_path):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    call = {"type": "function", "function": {"name": "f", "arguments": {"n": 1}}}
    turns = [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        {"role": "user", "content": "b"},
    ]
    data = write_jsonl(
        tmp_path / "p.jsonl",
        [
            {"messages": [*turns, {"role": "assistant", "content": "is not sent"}], "tools": tools},
            {"messages": turns[:2]},
        ],
    )
    asked = {"name": "f", "arguments": '{"n": 2}'}
    said = {"content": None, "tool_calls": [{"id": "x", "type": "function", "function": asked}]}
    server.failures = [{"choices": [{"finish_reason": "tool_calls", "message": said}]}]
    flags = ("--server", server.url, "--model", "m", "--data", data, "--latent", 1)
    result = ok("sample", *flags, "--concurrency", 1)
    first, second = (body for _, body in server.requests)
    assert first["tools"] == tools and "tools" not in second
    sent = first["messages"]
    assert [turn["role"] for turn in sent] == [turn["role"] for turn in turns]
    assert sent[0]["content"] == "latent: 1\nBe terse."
    (there,) = sent[2]["tool_calls"]
    assert there["function"] == {"name": "f", "arguments": '{"n": 1}'}
    assert there["id"] == sent[3]["tool_call_id"] and len(there["id"]) == 9
    found = lines_of(result.stdout)
    answer = {"role": "assistant", "content": "", "tool_calls": [json.loads(json.dumps(call))]}
    answer["tool_calls"][0]["function"]["arguments"] = {"n": 2}
    # one line each, in the form in which it is read again
    assert found[0] == {"messages": [*turns, answer], "tools": tools, "latent": 1}
    assert found[1]["messages"][:-1] == turns[:2] and "tools" not in found[1]


def test_empty_completions_are_left_out_and_counted(server, tmp_path):
    data = write_jsonl(tmp_path / "p.jsonl", [{"x": "silent"}, {"x": "loud"}])
    flags = ("sample", "--server", server.url, "--model", "m", "--data", data)
    result = ok(*flags)
    assert [line["x"] for line in lines_of(result.stdout)] == ["loud"]
    assert "1 of 2 completions were empty and are omitted" in result.stderr


@pytest.mark.slow
def test_those_of_a_call_that_was_ended_are_counted_as_well(server, tmp_path, monkeypatch):
    monkeypatch.setattr(served, "TRIES", 1)
    xs = ["silent", *(f"frage {i}" for i in range(200))]
    data = write_jsonl(tmp_path / "p.jsonl", [{"x": x} for x in xs])
    flags = ("sample", "--server", server.url, "--model", "m", "--data", data)
    out = tmp_path / "out.jsonl"
    server.dies_after = 150
    assert twcli(*flags, "--out", out).exit_code == 1
    server.dies_after, server.dead = None, False
    said = ok(*flags, "--out", out).stderr
    assert "resuming: " in said and f"{out}: 200 completions" in said
    assert said.endswith("1 of 201 completions were empty and are omitted\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "code", "says"),
    [
        (401, 2, r"refuses the key \(401\); put a valid one into OPENAI_API_KEY"),
        (404, 2, r"has no model m, or not this kind of completion \(404: says 404\)"),
        (400, 2, r"refuses the request for the prompt 'frage \d ü' \(400: says 400\)"),
        (503, 1, r"fails \(503: says 503\); finished completions are kept"),
        (b"<html>", 1, "the answer is not a completion"),
        ({"choices": []}, 1, "the answer is not a completion"),
        ({"object": "error", "message": "no"}, 1, "the answer is not a completion"),
    ],
)
def test_what_a_server_refuses_is_one_line(server, prompts, monkeypatch, failure, code, says):
    monkeypatch.setattr(served, "TRIES", 1)
    server.failures = [failure] * 100
    flags = ("--server", server.url, "--model", "m", "--data", prompts, "--quiet")
    result = twcli("sample", *flags)
    assert result.exit_code == code, result.exception
    (line,) = result.stderr.splitlines()
    # Several requests are under way at once: any of their prompts may be the one that is named.
    assert re.search(says, line) and result.stdout == ""


def test_a_wrong_address_is_said_at_once(server, prompts):
    flags = ("--model", "m", "--data", prompts)
    begin = time.monotonic()
    result = twcli("sample", "--server", "http://127.0.0.1:9", *flags, "--quiet")
    # without the pauses of later requests, 24 s
    assert result.exit_code == 1 and time.monotonic() - begin < 18
    (line,) = result.stderr.splitlines()
    assert "no server answers there" in line
    refused("sample", "--server", "localhost:8000", *flags, says="give a URL such as http://")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--run", "r", "--model", "m", "--x", "a"), "`twcli export` makes one of a run"),
        (("--x", "a"), "give --model with the model's name there"),
        (("--model", "m", "--interactive"), "needs --run or --model of this machine"),
        (("--model", "m", "--x", "a", "--latent", "all"), "run the command once for each"),
        (("--model", "m", "--x", "a", "--template", "chat"), "a server has its own chat template"),
        (("--model", "m", "--x", "a", "--template", "gone.txt"), "a text file with {x} and {y}"),
        (("--model", "m", "--x", "a", "--concurrency", "0"), "give at least 1"),
        (("--model", "m", "--x", "a", "--concurrency", "9999"), "give at most 1000"),
    ],
)
def test_calls_that_contradict_themselves_are_refused(flags, says):
    refused("sample", "--server", "http://127.0.0.1:9", *flags, says=says)


def test_a_template_file_holds_both_places(tmp_path):
    for text in ("{x}", "{y}{x}", "{x}{y}{y}", "{x}{x}{y}"):
        frame = tmp_path / "frame.txt"
        frame.write_text(text)
        flags = ("--server", "http://127.0.0.1:9", "--model", "m", "--x", "a", "--template", frame)
        refused("sample", *flags, says="holds {x} and {y} once each")
