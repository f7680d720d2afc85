"""Requests that send nonsense or too much: clear errors, and the others are served."""

import concurrent.futures
import http.client
import json
import socket

import pytest
from pydantic import ValidationError

from swift_sd.serve.requests import Chat, Complete

PATHS = ["/v1/chat/completions", "/v1/completions"]
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
MEBIBYTE = 2**20


def post(server, path, body, headers=None):
    """Status and parsed body of a request that no client library would send."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        given = {"Content-Type": "application/json", **(headers or {})}
        connection.request("POST", path, body, given)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"{}", b"[" * 100_000, b'{"model": NaN}'],
)
def test_nonsense_is_refused(server, path, body):
    status, answer = post(server, path, body)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [0] * 5000},
        {"messages": [{"role": "user", "content": [0] * 5000}]},
        {"prompt": [-1] * 5000},
        {"prompt": [[-1] * 5000]},
        {"prompt": "a", "metadata": {str(n): n for n in range(5000)}, "stop": [0] * 5000},
    ],
)
def test_a_million_wrong_elements_are_one_error(body):
    with pytest.raises(ValidationError) as refused:
        (Chat if "messages" in body else Complete).model_validate({"model": "tiny", **body})
    assert refused.value.error_count() < 40


@pytest.mark.parametrize("content", ["1e999", '{"a": 1}', '[{"type": "image_url"}]'])
def test_odd_content_is_refused(server, content):
    body = f'{{"model": "tiny", "messages": [{{"role": "user", "content": {content}}}]}}'
    status, answer = post(server, PATHS[0], body)
    assert status == 400
    assert "messages.0.content" in answer["error"]["message"]


def test_half_a_character_is_refused_wherever_it_is(server):
    for odd in ({"\ud800": 1}, {"user": "\ud800"}, {"messages": [{"role": "\udfff"}]}):
        status, answer = post(server, PATHS[0], json.dumps({**CHAT, **odd}).encode())
        assert status == 400
        assert "hex escape" in answer["error"]["message"]


def test_more_typed_control_tokens_than_the_context_holds_are_too_long(server):
    messages = [{"role": "user", "content": "</s>" * 5000}]
    status, answer = post(server, PATHS[0], json.dumps({**CHAT, "messages": messages}).encode())
    assert status == 400
    assert answer["error"]["code"] == "context_length_exceeded"
    assert answer["error"]["param"] == "messages"
    assert "5000 control tokens" in answer["error"]["message"]


def test_a_body_that_is_not_declared_as_json_is_refused(server):
    """Else any web page could have its visitors' browsers ask."""
    for declared in ("text/plain", "application/x-www-form-urlencoded", ""):
        status, _ = post(server, PATHS[0], json.dumps(CHAT), {"Content-Type": declared})
        assert status == 400
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
        body = json.dumps(CHAT)
        head = f"POST {PATHS[0]} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        raw.sendall(f"{head}Connection: close\r\n\r\n{body}".encode())
        assert b" 400 " in raw.recv(1000)


def test_unknown_paths_and_methods_have_errors_of_the_same_form(server):
    assert post(server, "/v1/nothing", b"{}")[0] == 404
    status, answer = post(server, "/v1/models", b"{}")
    assert status == 405
    assert answer["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd"]
)
def test_no_file_outside_the_page_can_be_had(server, path):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", path)
    assert connection.getresponse().status == 404
    connection.close()


@pytest.mark.parametrize("size", [10, 30])
@pytest.mark.parametrize("is_declared", [True, False])
def test_large_bodies_are_refused(server, is_declared, size):
    """Of 30 MB not all is read: whoever sends on regardless may be cut off."""
    body = json.dumps({**CHAT, "messages": [{"role": "user", "content": "x" * size * MEBIBYTE}]})
    pieces = [body[i : i + MEBIBYTE].encode() for i in range(0, len(body), MEBIBYTE)]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(
            "POST",
            PATHS[0],
            body if is_declared else pieces,
            {"Content-Type": "application/json"},
            encode_chunked=not is_declared,
        )
        response = connection.getresponse()
        assert response.status == 413
        assert "larger than" in json.loads(response.read())["error"]["message"]
    except ConnectionError:
        assert size > 16
    finally:
        connection.close()
    assert post(server, PATHS[0], json.dumps({**CHAT, "max_tokens": 2}))[0] == 200


def test_a_huge_prompt_is_refused_without_holding_up_others(server, client):
    content = "x " * (MEBIBYTE // 10)
    huge = json.dumps({**CHAT, "messages": [{"role": "user", "content": content}]})
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        refused = pool.submit(post, server, PATHS[0], huge)
        assert client.models.list().data
        status, answer = refused.result(timeout=60)
    assert status == 400
    assert answer["error"]["code"] == "context_length_exceeded"
