"""What is shared between requests: turns by client, and everything that is learned."""

import pytest
from starlette.requests import Request

from swift_sd import Swift, SwiftConfig
from swift_sd.serve.app import _by_address, _by_key
from swift_sd.serve.limits import Limits
from swift_sd.testing.families import tiny_model
from swift_sd.testing.planted import planted_model


def request(key: str, host: str) -> Request:
    headers = [(b"authorization", key.encode())]
    return Request({"type": "http", "headers": headers, "client": (host, 1)})


@pytest.mark.parametrize(
    ("whose", "same", "other"),
    [
        (_by_key, ("Bearer a", "10.0.0.2"), ("Bearer b", "10.0.0.1")),
        (_by_address, ("Bearer b", "10.0.0.1"), ("Bearer a", "10.0.0.2")),
    ],
)
def test_clients_are_told_apart(whose, same, other):
    mine = whose(request("Bearer a", "10.0.0.1"))
    assert whose(request(*same)) == mine != whose(request(*other))


def told(swift: Swift) -> int:
    """Candidates scored so far."""
    kinds = swift.profile.learned["kinds"]
    return sum(kind["search"]["told"] for kind in kinds if kind["search"] is not None)


def test_what_one_client_teaches_serves_the_next(serving, bytes_tokenizer, clock):
    size = len(bytes_tokenizer)
    model, planted = planted_model(tiny_model("llama", vocab_size=size), extra_layers=5)
    model.generation_config.eos_token_id = None
    swift = Swift(model, bytes_tokenizer, SwiftConfig(eager_search=True), clock=clock)
    asked = {"model": "tiny", "temperature": 0, "max_tokens": 80}
    with serving({"tiny": swift}, Limits()) as server:
        scores = []
        for key, prompt in enumerate(("abcdefgh", "ijklmnop", "abcdefgh")):
            with server.client(api_key=str(key)) as client:
                client.completions.create(prompt=prompt, **asked)
            scores.append(told(swift))
    assert 0 < scores[0] < scores[-1]
    layer_set = swift.layer_set
    assert len(layer_set.attention & planted) + len(layer_set.mlp & planted) > 0
