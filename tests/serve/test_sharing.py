"""What is shared between requests: turns by client, and everything that is learned."""

import pytest

from swift_sd import Swift, SwiftConfig
from swift_sd.serve.clients import client_of
from swift_sd.serve.limits import Limits
from swift_sd.testing.families import tiny_model
from swift_sd.testing.planted import planted_model


def client(key: str, host: str, by_key: bool) -> str:
    headers = [(b"authorization", key.encode())]
    return client_of({"type": "http", "headers": headers, "client": (host, 1)}, by_key=by_key)


@pytest.mark.parametrize(
    ("by_key", "same", "other"),
    [
        (True, ("Bearer a", "10.0.0.2"), ("Bearer b", "10.0.0.1")),
        (False, ("Bearer b", "10.0.0.1"), ("Bearer a", "10.0.0.2")),
        (False, ("", "::ffff:10.0.0.1"), ("", "::ffff:10.0.0.2")),
    ],
)
def test_clients_are_told_apart(by_key, same, other):
    mine = client("Bearer a", "10.0.0.1", by_key)
    assert client(*same, by_key) == mine != client(*other, by_key)


def test_all_addresses_of_an_ipv6_network_are_one_client():
    mine = client("", "2001:db8:0:1::1", False)
    assert client("", "2001:db8:0:1:a:b:c:d", False) == mine
    assert client("", "2001:db8:0:2::1", False) != mine
    assert client("", "fe80::1%eth0", False) == client("", "fe80::2%eth1", False)


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
