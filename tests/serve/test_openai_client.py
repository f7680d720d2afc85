"""The `openai` client, unchanged, against the running server; answers are those of transformers."""

import copy
import http.client
import json

import openai
import pytest

from swift_sd import Swift, SwiftConfig
from swift_sd.serve.decoding import Decoding
from swift_sd.serve.limits import Limits
from swift_sd.testing.families import tiny_model

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
GREEDY = {"model": "tiny", "temperature": 0}


def test_a_chat_says_what_the_model_alone_says(client, plain):
    answer = client.chat.completions.create(messages=MESSAGES, max_tokens=40, **GREEDY)
    choice = answer.choices[0]
    assert choice.message.content == plain(MESSAGES, 40)
    assert choice.message.role == "assistant"
    assert answer.model == "tiny"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_completion_continues_the_text(client, plain):
    answer = client.completions.create(prompt="def f(x):", max_tokens=30, **GREEDY)
    assert answer.choices[0].text == plain("def f(x):", 30)
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_a_completion_takes_token_ids(client, plain, bytes_tokenizer):
    ids = bytes_tokenizer("def f(x):").input_ids
    for prompt in (ids, [ids], ["def f(x):"]):
        answer = client.completions.create(prompt=prompt, max_tokens=30, **GREEDY)
        assert answer.choices[0].text == plain("def f(x):", 30)


def test_a_stream_has_the_same_text_and_the_usage_at_its_end(client, plain):
    stream = client.chat.completions.create(
        messages=MESSAGES,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
        **GREEDY,
    )
    chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == plain(MESSAGES, 40)
    assert deltas[0].role == "assistant"
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    assert reasons[-1] in ("stop", "length")
    usage = chunks[-1].usage
    assert usage.prompt_tokens > 0
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks[:-1])
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_a_completion_streams_too(client, plain):
    asked = {"prompt": "def f(x):", "max_tokens": 30, "stream": True, **GREEDY}
    chunks = list(client.completions.create(**asked))
    assert "".join(chunk.choices[0].text for chunk in chunks) == plain("def f(x):", 30)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    *_, last = client.completions.create(**asked, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.prompt_tokens == len("def f(x):")


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_in_the_middle_of_an_answer_is_told(client, plain, monkeypatch, stream):
    complete, steps = Decoding.next, []

    def breaking(self):
        steps.append(self)
        if len(steps) == 2:
            raise RuntimeError("a fault of ours")
        return complete(self)

    monkeypatch.setattr(Decoding, "next", breaking)
    asked = {"messages": MESSAGES, "max_tokens": 40, **GREEDY}
    if stream:
        with pytest.raises(openai.APIError, match="its log says why"):
            list(client.chat.completions.create(**asked, stream=True))
    else:
        with pytest.raises(openai.InternalServerError, match="its log says why"):
            client.chat.completions.create(**asked)
    answer = client.chat.completions.create(**asked)  # the server goes on
    assert answer.choices[0].message.content == plain(MESSAGES, 40)


def test_usage_tells_drafted_and_accepted_tokens(client):
    asked = {"messages": MESSAGES, "max_tokens": 60, **GREEDY}
    usage = client.chat.completions.create(**asked).usage
    assert 0 < usage.accepted_tokens < usage.drafted_tokens
    assert usage.accepted_tokens < usage.completion_tokens
    details = usage.completion_tokens_details
    assert details.accepted_prediction_tokens == usage.accepted_tokens
    assert details.rejected_prediction_tokens == usage.drafted_tokens - usage.accepted_tokens
    streamed = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    assert list(streamed)[-1].usage == usage


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_a_seed_gives_the_sample_of_the_model_alone(client, plain, temperature):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=40, temperature=temperature, top_p=0.9, seed=7
    )
    expected = plain(MESSAGES, 40, seed=7, temperature=temperature, top_p=0.9)
    assert answer.choices[0].message.content == expected


def test_without_a_seed_samples_differ(client):
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 40}
    answers = {client.chat.completions.create(**asked).choices[0].message.content for _ in range(3)}
    assert len(answers) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_stop_string(client, plain, stream):
    whole = plain(MESSAGES, 60)
    stop = whole[20:23]
    expected = whole[: whole.index(stop)]
    answer = client.chat.completions.create(
        messages=MESSAGES, max_tokens=60, stop=[stop, "never said"], stream=stream, **GREEDY
    )
    if stream:
        chunks = list(answer)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        assert answer.choices[0].message.content == expected
        assert answer.choices[0].finish_reason == "stop"


def test_content_may_come_in_parts_and_answers_may_be_sent_back(client, plain):
    first = client.chat.completions.create(messages=MESSAGES, max_tokens=10, **GREEDY)
    parts = [{"type": "text", "text": "Why is "}, {"type": "text", "text": "the sky blue?"}]
    said = first.choices[0].message
    again = [
        {"role": "user", "content": parts},
        said.model_dump(),
        {"role": "user", "content": "And?"},
    ]
    answer = client.chat.completions.create(messages=again, max_tokens=20, **GREEDY)
    flat = [*MESSAGES, {"role": "assistant", "content": said.content}, again[2]]
    assert answer.choices[0].message.content == plain(flat, 20)


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


@pytest.mark.parametrize("name", ["huge", "../tiny", "/etc/passwd", "tiny/../tiny", "", "~"])
def test_only_configured_names_are_models(client, name):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model=name, messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert "tiny" in caught.value.body["message"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"n": 2}, "n:"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content is missing"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "an assistant cannot begin"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client, changes, words):
    asked = {"model": "tiny", "messages": MESSAGES, **changes}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked)
    assert words in caught.value.body["message"]
    assert caught.value.type == "invalid_request_error"


def test_stop_strings_of_the_checkpoint_end_an_answer(serving, byte_model, bytes_tokenizer, plain):
    model = copy.deepcopy(byte_model)
    whole = plain(MESSAGES, 60)
    stop = next(text for i in range(9, 40) if (text := whole[i : i + 2]).isascii())
    model.generation_config.stop_strings = [stop]
    swift = Swift(model, bytes_tokenizer, SwiftConfig.plain())
    with serving({"tiny": swift}, Limits()) as server, server.client() as client:
        answer = client.chat.completions.create(messages=MESSAGES, max_tokens=60, **GREEDY)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < 60


def test_a_prompt_beyond_the_context_is_refused(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(prompt="x" * 5000, **GREEDY)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"
    assert "4096" in caught.value.body["message"]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(messages=[{"role": "user", "content": "x" * 5000}], **GREEDY)
    assert caught.value.param == "messages"


def test_an_empty_prompt_is_refused(client):
    with pytest.raises(openai.BadRequestError, match="empty"):
        client.completions.create(prompt="", **GREEDY)


def test_ids_that_the_model_has_not_are_refused(client):
    with pytest.raises(openai.BadRequestError, match="token ids"):
        client.completions.create(prompt=[5, 9999], **GREEDY)


def told(server, method, path, body=None):
    """Status and body of a request without a key."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_key_is_asked_for_where_there_is_one(serving, drafting_swift):
    from swift_sd.serve.limits import Limits

    with serving({"tiny": drafting_swift()}, Limits(), api_keys=("secret", "other")) as server:
        with server.client() as client, pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert caught.value.code == "invalid_api_key"
        for path in ("/v1/chat/completions", "/v1/completions", "/status", "/metrics", "/nothing"):
            status, body = told(server, "POST", path, b"{")  # which is not even read
            assert status == 401
            assert json.loads(body)["error"]["code"] == "invalid_api_key"
        for path in ("/", "/health", "/openapi.json", "/static/page.css"):
            assert told(server, "GET", path)[0] == 200
        for key in ("secret", "other"):
            with server.client(api_key=key) as client:
                assert [model.id for model in client.models.list()] == ["tiny"]


def test_two_models_answer_under_their_names(serving, drafting_swift, plain):
    from swift_sd.serve.limits import Limits

    swifts = {"one": drafting_swift(), "a/two": drafting_swift("none")}
    with serving(swifts, Limits()) as server, server.client() as client:
        assert [model.id for model in client.models.list()] == ["one", "a/two"]
        assert client.models.retrieve("a/two").id == "a/two"
        for name in swifts:
            answer = client.completions.create(
                model=name, prompt="abc", max_tokens=20, temperature=0
            )
            assert answer.choices[0].text == plain("abc", 20)


def test_a_chat_without_a_limit_ends_where_drafting_may_not_go_on(
    serving, bytes_tokenizer, drafting_swift
):
    """A dynamic rotary embedding changes behind the trained length."""
    from swift_sd.serve.limits import Limits

    model = tiny_model(
        "llama",
        vocab_size=len(bytes_tokenizer),
        layers=4,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    )
    model.generation_config.eos_token_id = None
    swifts = {"tiny": drafting_swift(model=model)}
    with serving(swifts, Limits()) as server, server.client() as client:
        answer = client.chat.completions.create(messages=[MESSAGES[0]], **GREEDY)
    assert answer.usage.total_tokens <= 64
    assert answer.choices[0].finish_reason in ("length", "stop")
