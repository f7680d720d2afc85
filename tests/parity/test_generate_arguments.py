"""Whatever `model.generate` takes in greedy decoding, `Swift` takes, with the same result."""

import pytest
import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
)

SETS = ("none", "unified", "every")
DEFAULTS = {"max_new_tokens": 24, "do_sample": False}


@pytest.fixture(params=SETS)
def pair(request, model_of, swift_of):
    """A model, and a Swift on it that drafts well, so-so, or badly."""
    model = model_of()
    return model, swift_of(model, request.param)


def agreed(pair, ids, **kwargs):
    """The tokens of plain generate, after Swift was found to give the same."""
    model, swift = pair
    kwargs = {**DEFAULTS, **kwargs}
    expected = model.generate(ids, **kwargs)
    assert torch.equal(swift.generate(ids, **kwargs), expected)
    return expected


def test_both_ways_in_give_what_plain_generate_gives(pair, prompt):
    model, swift = pair
    expected = agreed(pair, prompt(), eos_token_id=None)
    assert expected.shape == (1, 36)
    kwargs = {**DEFAULTS, "custom_generate": swift}
    assert torch.equal(model.generate(prompt(), eos_token_id=None, **kwargs), expected)
    for arguments in ({}, {"repetition_penalty": 1.3}, {"eos_token_id": [2, 5, 7, 11]}):
        expected = agreed(pair, prompt(), **arguments)
        assert torch.equal(model.generate(prompt(), **arguments, **kwargs), expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_models_own_end_token_ends_it(pair, prompt, seed):
    agreed(pair, prompt(9, seed), max_new_tokens=60)


def test_inputs_positional_or_by_name(pair, prompt):
    model, swift = pair
    expected = model.generate(prompt(), **DEFAULTS)
    mask = torch.ones_like(prompt())
    assert torch.equal(swift.generate(input_ids=prompt(), **DEFAULTS), expected)
    assert torch.equal(swift.generate(inputs=prompt(), **DEFAULTS), expected)
    named = swift.generate(input_ids=prompt(), attention_mask=mask, **DEFAULTS)
    assert torch.equal(named, expected)


def test_no_prompt_starts_from_the_start_token(pair):
    agreed(pair, None)


@pytest.mark.parametrize("length", [1, 2, 100])
def test_short_and_long_prompts(pair, prompt, length):
    agreed(pair, prompt(length))


def test_a_generation_config_object_is_read_and_not_changed(pair, prompt):
    config = GenerationConfig(max_new_tokens=17, eos_token_id=2, repetition_penalty=1.3)
    before = config.to_dict()
    model, swift = pair
    expected = model.generate(prompt(), generation_config=config)
    assert torch.equal(swift.generate(prompt(), generation_config=config), expected)
    assert config.to_dict() == before


def test_arguments_win_over_the_generation_config(pair, prompt):
    config = GenerationConfig(max_new_tokens=17, repetition_penalty=1.3)
    model, swift = pair
    kwargs = {"generation_config": config, "max_new_tokens": 5, "repetition_penalty": 1.0}
    expected = model.generate(prompt(), **kwargs)
    assert torch.equal(swift.generate(prompt(), **kwargs), expected)


def test_several_end_tokens(pair, prompt):
    model, _ = pair
    free = model.generate(prompt(), eos_token_id=None, **DEFAULTS)[0, 12:].tolist()
    for place in (0, 3, 10):
        ends = [2, free[place]]
        tokens = agreed(pair, prompt(), eos_token_id=ends)[0, 12:].tolist()
        assert tokens == free[: free.index(free[place]) + 1]


@pytest.mark.parametrize("new", [1, 2, 3, 6, 7, 8, 9])
def test_every_small_number_of_new_tokens(pair, prompt, new):
    assert agreed(pair, prompt(), max_new_tokens=new, eos_token_id=None).shape[1] == 12 + new


def test_max_length_counts_the_prompt(pair, prompt):
    kwargs = {"max_new_tokens": None, "max_length": 20, "eos_token_id": None}
    assert agreed(pair, prompt(), **kwargs).shape[1] == 20


def test_min_new_tokens_holds_the_end_off(pair, prompt):
    model, _ = pair
    ends = model.generate(prompt(), eos_token_id=None, **DEFAULTS)[0, 13].item()
    tokens = agreed(pair, prompt(), eos_token_id=ends, min_new_tokens=9)
    assert ends not in tokens[0, 12:21]


def test_time_that_is_up_ends_it_behind_the_token_that_was_under_way(pair, prompt):
    assert agreed(pair, prompt(), max_time=1e-9).shape[1] == 13
    assert agreed(pair, prompt(), max_time=1e6, eos_token_id=None).shape[1] == 36


BIGRAM = {(5, 9): -4.0, (17,): 3.0}
PROCESSORS = {
    "repetition_penalty": {"repetition_penalty": 1.4},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "suppress_tokens": {"suppress_tokens": list(range(20, 60))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(3, 90))},
    "bad_words_ids": {"bad_words_ids": [[n] for n in range(30, 60)] + [[5, 9], [7, 8, 9]]},
    "sequence_bias": {"sequence_bias": BIGRAM},
    "forced_eos_token_id": {"forced_eos_token_id": 2, "eos_token_id": None},
    "forced_bos_token_id": {"forced_bos_token_id": 1},
    "exponential_decay": {"exponential_decay_length_penalty": (5, 1.5), "eos_token_id": 2},
    "prefix_allowed_tokens_fn": {
        "prefix_allowed_tokens_fn": lambda batch, ids: [(int(ids[-1]) + k) % 101 for k in (3, 7)]
    },
    "guidance_scale": {"guidance_scale": 1.7},
    "negative_prompt_ids": {"guidance_scale": 1.7, "negative_prompt_ids": torch.tensor([[5, 6]])},
    "min_length": {"min_length": 24},
    "remove_invalid_values": {"remove_invalid_values": True},
    "renormalize_logits": {"renormalize_logits": True},
    "several": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "suppress_tokens": [4, 5]},
}


@pytest.mark.parametrize("skip", ["none", "unified"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_every_logits_processor_of_transformers(model_of, swift_of, prompt, name, skip):
    model = model_of()
    agreed((model, swift_of(model, skip)), prompt(), **PROCESSORS[name])


class Recorder(LogitsProcessor):
    """A user's processor with a state: bans what it chose before, and notes what it is shown."""

    def __init__(self) -> None:
        self.prefixes = []

    def __call__(self, input_ids, scores):
        self.prefixes.append(input_ids[0].tolist())
        scores[:, input_ids[0, -5:]] = -float("inf")
        scores[:, len(self.prefixes) % 101] += 2.0
        return scores


def test_a_users_stateful_processor_sees_what_it_sees_in_plain_decoding(pair, prompt):
    model, swift = pair
    plain, ours = Recorder(), Recorder()
    expected = model.generate(prompt(), logits_processor=[plain], **DEFAULTS)
    actual = swift.generate(prompt(), logits_processor=LogitsProcessorList([ours]), **DEFAULTS)
    assert torch.equal(actual, expected)
    assert ours.prefixes == plain.prefixes


class Until(StoppingCriteria):
    """A user's criterion with a state; notes the lengths it is shown."""

    def __init__(self, calls: int, kind) -> None:
        self.left, self.kind, self.lengths = calls, kind, []

    def __call__(self, input_ids, scores, **kwargs):
        self.lengths.append(input_ids.shape[1])
        self.left -= 1
        return self.kind(self.left <= 0)


@pytest.mark.parametrize("kind", [bool, lambda done: torch.tensor([done])], ids=["bool", "tensor"])
@pytest.mark.parametrize("calls", [1, 2, 5, 11])
def test_a_users_stopping_criterion_is_asked_after_every_token(pair, prompt, calls, kind):
    model, swift = pair
    plain, ours = Until(calls, kind), Until(calls, kind)
    kwargs = {**DEFAULTS, "eos_token_id": None}
    expected = model.generate(prompt(), stopping_criteria=StoppingCriteriaList([plain]), **kwargs)
    actual = swift.generate(prompt(), stopping_criteria=[ours], **kwargs)
    assert torch.equal(actual, expected)
    assert ours.lengths == plain.lengths


@pytest.mark.parametrize(
    "criteria",
    [
        [MaxLengthCriteria(15)],
        [EosTokenCriteria(list(range(3, 40)))],
        [MaxTimeCriteria(1e-9)],
        [MaxLengthCriteria(18), EosTokenCriteria(2)],
    ],
    ids=["length", "end", "time", "two"],
)
def test_transformers_criteria_given_by_hand(pair, prompt, criteria):
    agreed(pair, prompt(), stopping_criteria=StoppingCriteriaList(criteria))


@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_prompt_read_in_chunks(model_of, swift_of, prompt, chunk, family):
    model = model_of(family)
    agreed((model, swift_of(model)), prompt(12), prefill_chunk_size=chunk)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom"])
def test_padding_on_the_left_changes_nothing(model_of, swift_of, prompt, dtype, family):
    model = model_of(family)
    swift = swift_of(model)
    ids = torch.cat([torch.zeros(1, 4, dtype=torch.long), prompt()], dim=1)
    mask = (ids != 0).to(dtype)
    kwargs = {**DEFAULTS, "eos_token_id": None}
    padded = swift.generate(ids, attention_mask=mask, **kwargs)
    assert torch.equal(padded[:, 4:], model.generate(prompt(), **kwargs))
    assert torch.equal(padded[:, :4], ids[:, :4])
    assert torch.equal(model.generate(ids, attention_mask=mask, **kwargs), padded)


def test_without_a_mask_padding_is_recognised_as_transformers_does(pair, prompt):
    ids = torch.cat([torch.zeros(1, 4, dtype=torch.long), prompt()], dim=1)
    agreed(pair, ids)


def test_an_answer_may_pass_the_models_context(pair, prompt):
    agreed(pair, prompt(240), max_new_tokens=24, eos_token_id=None)


def test_learned_positions_are_used_to_the_last_one(model_of, swift_of, prompt):
    model = model_of("gpt2")
    tokens = agreed((model, swift_of(model)), prompt(240), max_new_tokens=17, eos_token_id=None)
    assert tokens.shape[1] == 257
