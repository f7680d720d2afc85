"""240 requests from 8 clients at once: none lost, none mixed up."""

import concurrent.futures
import random

import pytest
import torch

from swift_sd import Swift
from swift_sd.serve.limits import Limits

CLIENTS, REQUESTS = 8, 240


def question(number: int) -> dict:
    """The `number`-th request: every kind of it, many alike."""
    draw = random.Random(number % 60)
    prompt = "".join(draw.choices("abc def,", k=draw.randint(1, 12)))
    tokens = draw.randint(1, 16)
    sampling = draw.choice([{"temperature": 0}, {"temperature": 0.8, "seed": draw.randint(0, 9)}])
    return {"prompt": prompt, "max_tokens": tokens, **sampling}


@pytest.fixture(scope="module")
def expected(byte_model, bytes_tokenizer) -> dict[int, str]:
    """What transformers alone says to each."""
    answers = {}
    for number in range(60):
        asked = question(number)
        inputs = bytes_tokenizer(asked["prompt"], return_tensors="pt", return_token_type_ids=False)
        sampling = {"do_sample": False}
        if asked["temperature"]:
            torch.manual_seed(asked["seed"])
            sampling = {"do_sample": True, "temperature": asked["temperature"], "top_k": 0}
        out = byte_model.generate(**inputs, max_new_tokens=asked["max_tokens"], **sampling)
        new = out[0, inputs["input_ids"].shape[1] :]
        answers[number] = bytes_tokenizer.decode(new, skip_special_tokens=True)
    return answers


def test_each_answer_is_the_one_that_it_would_be_alone(
    serving, byte_model, bytes_tokenizer, expected
):
    """With the default configuration: all share what is learned while they run."""
    swift = Swift(byte_model, bytes_tokenizer)
    limits = Limits(active=5, waiting=CLIENTS)
    with serving({"tiny": swift}, limits) as server:

        def client(index: int) -> dict[int, str]:
            answers = {}
            with server.client(api_key=f"client-{index}", max_retries=2) as api:
                for number in range(index, REQUESTS, CLIENTS):
                    stream = number % 2 == 0
                    answer = api.completions.create(model="tiny", stream=stream, **question(number))
                    if stream:
                        answers[number] = "".join(c.choices[0].text for c in answer)
                    else:
                        answers[number] = answer.choices[0].text
            return answers

        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            merged = {}
            for answers in pool.map(client, range(CLIENTS)):
                merged |= answers
        assert server.idle()
        assert server.engine.models["tiny"].figures.state()["responses"] == REQUESTS
    assert len(merged) == REQUESTS
    wrong = [number for number in merged if merged[number] != expected[number % 60]]
    assert wrong == []
