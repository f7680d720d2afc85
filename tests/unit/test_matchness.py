"""Scoring runs known tokens again and leaves the cache as it was."""

import pytest
import torch
from transformers import LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList

from swift_sd import LayerSet
from swift_sd.adapting.influence import InfluenceView
from swift_sd.adapting.matchness import Window
from swift_sd.decoding.loop import decode
from swift_sd.decoding.state import DecodingState
from swift_sd.decoding.stopping import Stopping
from swift_sd.decoding.warping import Warping
from swift_sd.model.draft_view import DraftView
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.sublayers import find_sublayers
from swift_sd.model.target import Target
from swift_sd.testing.families import tiny_model
from swift_sd.testing.planted import planted_model

PROMPT, NEW = 20, 16


def response(model, new=NEW, do_sample=False):
    """A state in the middle of a response."""
    ids = torch.randint(3, 100, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    criteria = StoppingCriteriaList([MaxLengthCriteria(PROMPT + 2 * NEW)])
    warping = Warping(LogitsProcessorList(), do_sample)
    cache = KVCache(attention_windows(model.config))
    state = DecodingState(ids, cache, warping, Stopping(criteria))
    rounds = decode(Target(model), None, state, ids, 0)
    for _ in range(new):
        next(rounds)
    return state, rounds


@pytest.fixture(params=["llama", "mistral", "gemma3_text", "gpt2"])
def model(request):
    return tiny_model(request.param)


def view_of(model, layer_set):
    return DraftView(model, find_sublayers(model), layer_set)


@pytest.mark.parametrize("tokens", [4, NEW])
@pytest.mark.parametrize("do_sample", [False, True])
def test_the_target_matches_itself_and_the_response_goes_on_as_if_nothing_was(
    model, tokens, do_sample
):
    torch.manual_seed(0)
    rest = [step.tokens for step in response(model, do_sample=do_sample)[1]]
    torch.manual_seed(0)
    state, rounds = response(model, do_sample=do_sample)
    held = [[part.clone() for part in b.tail(state.cache.committed)] for b in state.cache.buffers]
    if not state.cache.can_rewind(tokens):
        pytest.skip("longer than what a sliding layer remembers")
    window = Window(lambda: Target(model), state, tokens)
    assert window.matchness(Target(model)) == 1.0
    assert 0 <= window.matchness(view_of(model, LayerSet.every(5))) < 1
    for buffer, before in zip(state.cache.buffers, held, strict=True):
        for part, kept in zip(buffer.tail(state.cache.committed), before, strict=True):
            assert torch.equal(part, kept)
    assert [step.tokens for step in rounds] == rest


def test_choices_of_a_prompt_are_asked_of_the_target():
    model = tiny_model("llama")
    state, _ = response(model, new=1)
    window = Window(lambda: Target(model), state, 12)
    with torch.no_grad():
        best = model(state.tokens).logits[0].argmax(dim=-1)
    view = view_of(model, LayerSet(5, {2}, {3}))
    with torch.no_grad():
        drafted = view.forward(state.tokens[:, :-1], KVCache([None] * 5))[0].argmax(dim=-1)
    same = (drafted[-12:] == best[-13:-1]).double().mean()
    assert window.matchness(view) == pytest.approx(float(same))


def test_a_window_beyond_what_a_sliding_layer_remembers_is_refused():
    model = tiny_model("mistral")  # a window of 8
    state, rounds = response(model)
    state.cache.buffers[0].origin = state.cache.committed - 9
    with pytest.raises(ValueError, match="cannot go back by 12"):
        Window(lambda: Target(model), state, 12)
    rounds.close()


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2", "gemma2", "bloom", "mixtral"])
def test_influence_is_measured_in_every_layout(family):
    model = tiny_model(family)
    sublayers = find_sublayers(model)
    view = InfluenceView(model, sublayers)
    ids = torch.randint(3, 100, (1, 9), generator=torch.Generator().manual_seed(2))
    logits = view.forward(ids, KVCache(attention_windows(model.config)))
    with torch.no_grad():
        torch.testing.assert_close(logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    shares = [*view.influence.attention, *view.influence.mlp]
    assert len(shares) == 10
    assert all(share > 0.01 for share in shares)


def test_planted_layers_have_no_influence():
    model, planted = planted_model(tiny_model("llama"), extra_layers=5)
    view = InfluenceView(model, find_sublayers(model))
    view.forward(torch.tensor([[5, 9, 7, 30]]), KVCache(attention_windows(model.config)))
    for layer in range(10):
        for share in (view.influence.attention[layer], view.influence.mlp[layer]):
            assert (share < 0.02) == (layer in planted)
