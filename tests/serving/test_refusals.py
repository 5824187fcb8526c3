"""Requests that cannot be answered: one clear message in OpenAI's shape."""

import json
import socket
import time

import pytest
from openai import APIError, AuthenticationError

from tests.serving.running import running

ASK = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
COMPLETE = {"model": "demo", "prompt": "Hi", "max_tokens": 4}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        (CHAT, b"{", 400, "no JSON"),
        (CHAT, b"\xff\xfe{}", 400, "not UTF-8 (byte 0)"),
        (CHAT, b"[1]", 400, "no object; send one"),
        (CHAT, b"[" * 100_000, 400, "no JSON"),
        (CHAT, b'{"temperature": NaN}', 400, "NaN is no number of JSON"),
        (CHAT, b" " * 10_000_001, 413, "more than 10 MB"),
        (CHAT, {}, 400, "model is missing"),
        (CHAT, {**ASK, "messages": []}, 400, "messages"),
        (CHAT, {**ASK, "messages": "Hi"}, 400, "messages"),
        (CHAT, {**ASK, "messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role"),
        (CHAT, {**ASK, "tools": []}, 400, "tools is not supported"),
        (CHAT, {**ASK, "response_format": {"type": "json_object"}}, 400, "response_format is not supported"),
        (CHAT, {**ASK, "temperature": "hot"}, 400, "temperature"),
        (CHAT, {**ASK, "temperature": 3}, 400, "temperature"),
        (CHAT, {**ASK, "top_p": 0}, 400, "top_p"),
        (CHAT, {**ASK, "n": 17}, 400, "n: "),
        (CHAT, {**ASK, "stop": ""}, 400, "stop: an empty stop string"),
        (CHAT, {**ASK, "top_logprobs": 3}, 400, "top_logprobs needs logprobs"),
        (CHAT, {**ASK, "max_completion_tokens": 5}, 400, "differ"),
        (CHAT, {**ASK, "logit_bias": {"a": 1}}, 400, "'a' is no token id"),
        (CHAT, {**ASK, "logit_bias": {"999999": 1}}, 400, "logit_bias names token 999999"),
        (CHAT, {**ASK, "max_tokens": 100_000}, 400, "max_tokens is 100000, and the model's context is"),
        (CHAT, {**ASK, "model": "gpt-4"}, 404, "there are demo, deeper, shallow, and demo@SPEC"),
        (CHAT, {**ASK, "model": "demo@0:99"}, 400, "stop 99 is past the model's 12 layers"),
        (CHAT, {**ASK, "model": "demo@"}, 400, ""),
        (TEXT, {**COMPLETE, "prompt": ""}, 400, "no tokens"),
        (TEXT, {**COMPLETE, "prompt": [10**9]}, 400, "tokens past the model's"),
        (TEXT, {**COMPLETE, "prompt": "a " * 5000}, 400, "the model's context is"),
        (TEXT, {**COMPLETE, "suffix": "x"}, 400, "suffix is not supported"),
        (TEXT, {**COMPLETE, "best_of": 2}, 400, "best_of is not supported"),
        (TEXT, {**COMPLETE, "echo": True}, 400, "echo: it is not supported"),
        (TEXT, {**COMPLETE, "prompt": ["Hi"] * 100}, 400, "100 answers at once, and 68 are taken at most"),
        (TEXT, b'{"model": "demo", "prompt": "a \\ud83d"}', 400, "half a surrogate pair"),
        (CHAT, {**ASK, "stop": "x" * 257}, 400, "a stop string has 257 characters; write 256"),
        (CHAT, {**ASK, "logit_bias": {"9" * 5000: 1}}, 400, "is no token id"),
        (CHAT, {**ASK, "logit_bias": {"05": 1}}, 400, "'05' is no token id"),
        (CHAT, {**ASK, "model": "~\0@0:4"}, 404, "there is no model"),
        (
            CHAT,
            {**ASK, "model": "demo@" + ",".join(["0:12"] * 9)},
            400,
            "108 visits and a request's may have 96",
        ),
        (
            CHAT,
            {**ASK, "messages": [{"role": "assistant", "content": "I"}]},
            400,
            "nothing before the assistant",
        ),
        (
            CHAT,
            {**ASK, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "parts of type 'image_url' are not supported",
        ),
        ("/v1/embeddings", {}, 404, "Not Found"),
    ],
)
def test_wrong_requests(server, path, body, status, told):
    found, answer = server.post(path, body)
    assert (found, sorted(answer)) == (status, ["error"])
    assert told in answer["error"]["message"]
    assert answer["error"]["type"]
    assert server.is_idle(5)


def test_a_wrong_spec_is_pointed_at(server):
    _, answer = server.post(CHAT, {**ASK, "model": "demo@0:8,4:120"})
    assert "^" in answer["error"]["message"]


def test_nulls_are_left_out(server):
    status, _ = server.post(CHAT, {**ASK, "tools": None, "stop": None, "seed": None, "user": "me"})
    assert status == 200


def test_fixed_plans_and_keys():
    with running(named={"deeper": "0:8,4:12"}, fixed=True, api_key="secret") as server:
        assert server.post(CHAT, ASK)[0] == 401
        assert server.post(CHAT, ASK, {"authorization": "Bearer wrong"})[0] == 401
        with pytest.raises(AuthenticationError):
            server.openai.models.list()
        key = {"authorization": "Bearer secret"}
        assert server.post(CHAT, ASK, key)[0] == 200
        status, answer = server.post(CHAT, {**ASK, "model": "demo@0:4"}, key)
        assert status == 404 and "only named plans" in answer["error"]["message"]
        assert '"ok"' in server.get("/health")


def test_a_full_queue_refuses():
    long = {**COMPLETE, "max_tokens": 400, "ignore_eos": True, "stream": True}
    with running(slots=1, queue=1) as server:
        streams = [begun(server, long) for _ in range(2)]
        deadline = time.monotonic() + 20
        while server.writers.running + server.writers.waiting < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        status, answer = server.post(TEXT, COMPLETE)
        assert status == 429 and "1 wait, of 1" in answer["error"]["message"]
        for stream in streams:
            stream.close()
        assert server.is_idle()
        assert server.post(TEXT, COMPLETE)[0] == 200


def test_a_waiting_client_that_goes_away_frees_its_place():
    long = {**COMPLETE, "max_tokens": 900, "ignore_eos": True, "stream": True}
    with running(slots=1, queue=1) as server:
        writing, waiting = begun(server, long), begun(server, long)
        deadline = time.monotonic() + 20
        while not server.writers.waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        waiting.close()
        while server.writers.waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (server.writers.running, server.writers.waiting) == (1, 0)
        writing.close()


def test_paths_make_no_measures_of_their_own(server):
    for number in range(3):
        server.post(f"/v1/xyz{number}", {})
        server.post(CHAT, {**ASK, "model": f"demo@0:{number + 1}"})
    told = server.get("/metrics")
    assert "xyz" not in told and "demo@0:1" not in told


def test_a_server_that_ends_says_so():
    with running() as server:
        stream = server.openai.completions.create(
            model="demo", prompt="Hi", max_tokens=900, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        server.writers.close()
        with pytest.raises(APIError, match="the server is ending"):
            list(stream)
        assert server.post(TEXT, COMPLETE)[0] == 429


def begun(server, body):
    """A connection over which a request has been sent."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    data = json.dumps(body).encode()
    head = f"POST {TEXT} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(server, stream):
    before = ended_answers(server)
    connection = begun(server, {**COMPLETE, "max_tokens": 1000, "ignore_eos": True, "stream": stream})
    deadline = time.monotonic() + 20
    while not server.writers.running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.writers.running == 1
    connection.close()
    assert server.is_idle(10)
    assert ended_answers(server) == before, "it was written to its end"


def ended_answers(server):
    return [line for line in server.get("/metrics").splitlines() if line.startswith("restack_answers_total")]


def test_a_slow_client_is_let_go(server, monkeypatch):
    monkeypatch.setattr("restack.serving.bodies.PATIENCE", 0.2)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n\r\n{{".encode())
        connection.settimeout(10)
        assert b"408" in connection.recv(1000)
