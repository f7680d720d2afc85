"""Sampling: seeds repeat, and nothing comes out that the settings exclude."""

import pytest
import torch

WARPERS = {
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.6, "top_k": 0},
    "min_p": {"min_p": 0.3, "top_k": 0},
    "typical_p": {"typical_p": 0.4, "top_k": 0},
    "epsilon_cutoff": {"epsilon_cutoff": 0.05, "top_k": 0},
    "eta_cutoff": {"eta_cutoff": 0.1, "top_k": 0},
    "several": {"temperature": 1.4, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2},
}
LONG = {"do_sample": True, "eos_token_id": None, "max_new_tokens": 24}


@pytest.mark.parametrize("skip", ["none", "unified", "every"])
def test_the_same_seed_gives_the_same_and_another_seed_something_else(
    model_of, swift_of, prompt, skip
):
    swift = swift_of(model_of(), skip)

    def run(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return swift.generate(prompt(), **LONG)[0].tolist()

    runs = [run(seed) for seed in (0, 1, 0, 1)]
    assert runs[0] == runs[2]
    assert runs[1] == runs[3]
    assert runs[0] != runs[1]


@pytest.mark.parametrize("skip", ["none", "unified", "every"])
def test_one_candidate_is_greedy(model_of, swift_of, prompt, skip):
    model = model_of()
    greedy = model.generate(prompt(), do_sample=False, eos_token_id=None, max_new_tokens=24)
    assert torch.equal(swift_of(model, skip).generate(prompt(), top_k=1, **LONG), greedy)


def test_a_tiny_temperature_is_greedy(model_of, swift_of, prompt):
    model = model_of()
    greedy = model.generate(prompt(), do_sample=False, eos_token_id=None, max_new_tokens=24)
    assert torch.equal(swift_of(model).generate(prompt(), temperature=1e-4, **LONG), greedy)


@pytest.mark.parametrize("skip", ["none", "unified", "every"])
@pytest.mark.parametrize("name", WARPERS)
def test_every_token_lies_in_the_support_of_its_scores(model_of, swift_of, prompt, name, skip):
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out = swift_of(model_of(), skip).generate(prompt(), **LONG, **WARPERS[name], **asked)
    tokens = out.sequences[0, 12:].tolist()
    assert len(tokens) == len(out.scores) == len(out.logits) == 24
    for token, scores in zip(tokens, out.scores, strict=True):
        assert scores[0, token] > -torch.inf
    limits = [int((scores > -torch.inf).sum()) for scores in out.scores]
    if name != "temperature":
        assert max(limits) < 101  # the setting does exclude something
    if name == "top_k":
        assert set(limits) == {5}


@pytest.mark.parametrize("skip", ["none", "every"])
def test_scores_are_the_ones_plain_decoding_has_for_these_tokens(model_of, swift_of, prompt, skip):
    model = model_of()
    asked = {"return_dict_in_generate": True, "output_scores": True}
    out = swift_of(model, skip).generate(prompt(), temperature=0.7, top_k=0, **LONG, **asked)
    with torch.no_grad():
        logits = model(input_ids=out.sequences).logits[0, 11:-1]
    torch.testing.assert_close(torch.cat(out.scores), logits / 0.7, rtol=1e-3, atol=1e-3)


def test_end_tokens_end_a_sampled_response(model_of, swift_of, prompt):
    ends = list(range(3, 30))
    kwargs = {**LONG, "eos_token_id": ends, "max_new_tokens": 60}
    for seed in range(6):
        torch.manual_seed(seed)
        new = swift_of(model_of(), "none").generate(prompt(), **kwargs)[0, 12:].tolist()
        assert new[-1] in ends or len(new) == 60
        assert not set(new[:-1]) & set(ends)


def test_both_ways_in_draw_the_same(model_of, swift_of, prompt):
    model = model_of()
    swift = swift_of(model)
    torch.manual_seed(5)
    one = swift.generate(prompt(), **LONG)
    torch.manual_seed(5)
    assert torch.equal(model.generate(prompt(), custom_generate=swift, **LONG), one)


def test_a_users_processor_and_sampling_go_together(model_of, swift_of, prompt):
    even = [lambda ids, scores: scores.masked_fill(torch.arange(101) % 2 == 1, -torch.inf)]
    new = swift_of(model_of(), "none").generate(prompt(), logits_processor=even, **LONG)[0, 12:]
    assert not (new % 2).any()


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "qwen3_moe"])
def test_other_families_sample_too(model_of, swift_of, prompt, family):
    assert swift_of(model_of(family)).generate(prompt(), **LONG).shape == (1, 36)
