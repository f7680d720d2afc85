"""Scores, caches, streams and seeds: everything around the tokens is transformers' own, too."""

import pytest
import torch
from transformers import DynamicCache
from transformers.generation import BaseStreamer

from swift_sd import Swift, SwiftConfig
from swift_sd.model.kv_cache import generate_cache_name

CACHE = generate_cache_name()

KINDS = ("llama", "mistral", "gemma3_text")  # full attention, sliding, and both
FIXED = {"do_sample": False, "eos_token_id": None}


class Heard(BaseStreamer):
    def __init__(self) -> None:
        self.events = []

    def put(self, value):
        self.events.append(value.tolist())

    def end(self):
        self.events.append("end")


def test_a_streamer_hears_the_prompt_and_then_token_by_token(model_of, swift_of, prompt):
    model, plain, ours = model_of(), Heard(), Heard()
    model.generate(prompt(), streamer=plain, max_new_tokens=20, **FIXED)
    swift_of(model).generate(prompt(), streamer=ours, max_new_tokens=20, **FIXED)
    assert ours.events == plain.events
    assert len(ours.events) == 22


def test_a_streamer_hears_nothing_behind_the_end_token(model_of, swift_of, prompt):
    model = model_of()
    free = model.generate(prompt(), max_new_tokens=10, **FIXED)[0, 12:].tolist()
    plain, ours = Heard(), Heard()
    kwargs = {"do_sample": False, "eos_token_id": free[2], "max_new_tokens": 20}
    model.generate(prompt(), streamer=plain, **kwargs)
    swift_of(model, "none").generate(prompt(), streamer=ours, **kwargs)
    assert ours.events == plain.events


def test_through_model_generate_the_streamer_has_another_name(model_of, swift_of, prompt):
    model, plain, ours = model_of(), Heard(), Heard()
    model.generate(prompt(), streamer=plain, max_new_tokens=20, **FIXED)
    kwargs = {"custom_generate": swift_of(model), "token_streamer": ours, "max_new_tokens": 20}
    model.generate(prompt(), **kwargs, **FIXED)
    assert ours.events == plain.events[1:]  # transformers tells the prompt only to its own


WITH_SCORES = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


@pytest.mark.parametrize("skip", ["none", "unified"])
@pytest.mark.parametrize("warp", [{}, {"repetition_penalty": 1.5}, {"suppress_tokens": [4, 5]}])
def test_scores_and_logits_are_those_of_plain_decoding(model_of, swift_of, prompt, skip, warp):
    model = model_of()
    kwargs = {**WITH_SCORES, **warp, **FIXED, "max_new_tokens": 20}
    expected = model.generate(prompt(), **kwargs)
    actual = swift_of(model, skip).generate(prompt(), **kwargs)
    assert type(actual) is type(expected)
    assert torch.equal(actual.sequences, expected.sequences)
    for name in ("scores", "logits"):
        ours, theirs = actual[name], expected[name]
        assert isinstance(ours, tuple)
        assert [one.shape for one in ours] == [one.shape for one in theirs]
        assert {one.dtype for one in ours} == {torch.float32}
        torch.testing.assert_close(torch.cat(ours), torch.cat(theirs), rtol=1e-3, atol=1e-3)
    assert (actual.attentions, actual.hidden_states) == (None, None)


def test_scores_end_with_the_response(model_of, swift_of, prompt):
    model = model_of()
    free = model.generate(prompt(), max_new_tokens=10, **FIXED)[0, 12:].tolist()
    kwargs = {**WITH_SCORES, "eos_token_id": free[3], "max_new_tokens": 20}
    actual = swift_of(model, "none").generate(prompt(), **kwargs)
    new = actual.sequences.shape[1] - 12
    assert new == free.index(free[3]) + 1
    assert len(actual.scores) == len(actual.logits) == new


@pytest.mark.parametrize("only", ["output_scores", "output_logits", None])
def test_what_was_not_asked_for_is_none(model_of, swift_of, prompt, only):
    wanted = {only: True} if only else {}
    swift = swift_of(model_of())
    out = swift.generate(prompt(), return_dict_in_generate=True, max_new_tokens=5, **wanted)
    assert (out.scores is None) == (only != "output_scores")
    assert (out.logits is None) == (only != "output_logits")
    assert isinstance(swift.generate(prompt(), max_new_tokens=5, **wanted), torch.Tensor)


def test_scores_give_transition_scores(model_of, swift_of, prompt):
    model = model_of()
    kwargs = {**WITH_SCORES, **FIXED, "max_new_tokens": 8}
    outputs = [model.generate(prompt(), **kwargs), swift_of(model).generate(prompt(), **kwargs)]
    expected, actual = (
        model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
        for out in outputs
    )
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def assert_same_cache(ours, theirs) -> None:
    assert type(ours) is type(theirs)
    assert ours.get_seq_length() == theirs.get_seq_length()
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert mine.get_mask_sizes(2) == other.get_mask_sizes(2)
        torch.testing.assert_close(mine.keys, other.keys, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(mine.values, other.values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("skip", ["none", "unified"])
@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("new", [1, 2, 20])
def test_the_returned_cache_is_transformers_own(model_of, swift_of, prompt, family, new, skip):
    model = model_of(family)
    kwargs = {"return_dict_in_generate": True, "max_new_tokens": new, **FIXED}
    expected = model.generate(prompt(), **kwargs)
    actual = swift_of(model, skip).generate(prompt(), **kwargs)
    assert_same_cache(actual[CACHE], expected[CACHE])


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("length", [5, 12])  # the windows are of 8 tokens
def test_a_conversation_over_one_cache(model_of, swift_of, prompt, family, length):
    """Turns by transformers and by Swift, over one user's cache each, in any order."""
    model = model_of(family)
    swift = swift_of(model)
    methods = {"plain": model.generate, "swift": swift.generate}
    turns = ("swift", "swift", "plain", "swift")
    caches = {name: DynamicCache(config=model.config) for name in ("expected", "actual")}
    ids = prompt(length)
    for number, turn in enumerate(turns):
        kwargs = {"max_new_tokens": 9, **FIXED}
        expected = model.generate(ids, **{CACHE: caches["expected"]}, **kwargs)
        actual = methods[turn](ids, **{CACHE: caches["actual"]}, **kwargs)
        assert torch.equal(actual, expected)
        assert_same_cache(caches["actual"], caches["expected"])
        ids = torch.cat([expected, prompt(4, seed=number)], dim=1)


@pytest.mark.parametrize("family", KINDS)
def test_a_cache_made_without_a_config_serves_too(model_of, swift_of, prompt, family):
    """As tutorials make it; then transformers lets sliding layers keep every row."""
    model = model_of(family)
    swift = swift_of(model)
    caches, ids = (DynamicCache(), DynamicCache()), prompt()
    for number in range(2):
        kwargs = {"max_new_tokens": 9, **FIXED}
        expected = model.generate(ids, **{CACHE: caches[0]}, **kwargs)
        assert torch.equal(swift.generate(ids, **{CACHE: caches[1]}, **kwargs), expected)
        assert_same_cache(caches[1], caches[0])
        ids = torch.cat([expected, prompt(4, seed=number)], dim=1)


@pytest.mark.parametrize("family", KINDS)
def test_a_returned_cache_can_be_continued(model_of, swift_of, prompt, family):
    model = model_of(family)
    swift = swift_of(model)
    first = swift.generate(prompt(), return_dict_in_generate=True, max_new_tokens=9, **FIXED)
    ids, kwargs = first.sequences, {"max_new_tokens": 9, **FIXED}
    expected = model.generate(ids, **kwargs)
    actual = swift.generate(ids, **{CACHE: first[CACHE]}, **kwargs)
    assert torch.equal(actual, expected)
    assert first[CACHE].get_seq_length() == expected.shape[1] - 1


@pytest.mark.parametrize("family", KINDS)
def test_only_the_new_ids_with_a_mask_for_all(model_of, swift_of, prompt, family):
    model = model_of(family)
    results = []
    for method in (model.generate, swift_of(model).generate):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=prompt(), **{CACHE: cache})
        kwargs = {"attention_mask": torch.ones(1, 16, dtype=torch.long), "max_new_tokens": 9}
        results.append(
            method(prompt(4, seed=1), **{CACHE: cache}, **kwargs, **FIXED),
        )
    assert torch.equal(*results)


@pytest.mark.parametrize("held", [1, 12, 30, 31, 32, 50])
@pytest.mark.parametrize("config", [SwiftConfig.paper(), SwiftConfig(eager_search=True)])
def test_the_search_looks_at_the_new_ids_behind_a_prefix(model_of, prompt, config, held):
    model, results = model_of(), []
    for method in (model.generate, Swift(model, config=config).generate):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=prompt(held), **{CACHE: cache})
        mask = torch.ones(1, held + 4, dtype=torch.long)
        kwargs = {"attention_mask": mask, "max_new_tokens": 60, **FIXED}
        results.append(method(prompt(4, seed=1), **{CACHE: cache}, **kwargs))
    assert torch.equal(*results)


@pytest.mark.parametrize("skip", ["none", "unified", "every"])
def test_a_criterion_may_look_at_what_the_streamer_has_heard(model_of, swift_of, prompt, skip):
    model, results = model_of(), []
    for method in (model.generate, swift_of(model, skip).generate):
        heard = Heard()
        enough = [lambda ids, scores, heard=heard: len(heard.events) >= 6]
        out = method(prompt(), streamer=heard, stopping_criteria=enough, max_new_tokens=24, **FIXED)
        results.append((out.tolist(), heard.events))
    assert results[0] == results[1]


def test_a_prefix_without_its_last_token_read_in_chunks(model_of, swift_of, prompt):
    model = model_of("gemma3_text")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=prompt(20)[:, :11], **{CACHE: cache})
    kwargs = {"max_new_tokens": 9, **FIXED}
    actual = swift_of(model).generate(prompt(20), **{CACHE: cache}, prefill_chunk_size=2, **kwargs)
    assert torch.equal(actual, model.generate(prompt(20), **kwargs))


def test_an_inference_mode_caller_is_served(model_of, swift_of, prompt):
    model = model_of()
    swift = swift_of(model)
    expected = model.generate(prompt(), max_new_tokens=20, **FIXED)
    with torch.inference_mode():
        assert torch.equal(swift.generate(prompt(), max_new_tokens=20, **FIXED), expected)
        rounds = swift.steps(prompt(), max_new_tokens=20, **FIXED)
        first = next(rounds)
    rest = [token for step in rounds for token in step.tokens]
    assert [*first.tokens, *rest] == expected[0, 12:].tolist()


def test_what_comes_out_can_be_written_to(model_of, swift_of, prompt):
    """No inference tensors: users mask scores and pad sequences in place."""
    out = swift_of(model_of()).generate(prompt(), max_new_tokens=5, **WITH_SCORES)
    cache = [t for layer in out[CACHE].layers for t in (layer.keys, layer.values)]
    for tensor in (out.sequences, *out.scores, *out.logits, *cache):
        assert not tensor.is_inference()
        tensor.mul_(2)
