"""Several responses at a time do not meet: on one model, on two, through one object."""

import threading

import pytest
import torch
from transformers import DynamicCache

from swift_sd.model.kv_cache import generate_cache_name
from swift_sd.testing.families import tiny_model

CACHE = generate_cache_name()

GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 24}


def test_rounds_of_two_objects_on_one_model_interleave(model_of, swift_of, prompt):
    model = model_of("gemma3_text")
    prompts = [prompt(9, seed=1), prompt(14, seed=2)]
    swifts = [swift_of(model, "every"), swift_of(model, "none")]
    expected = [model.generate(ids, **GREEDY)[0, ids.shape[1] :].tolist() for ids in prompts]
    running = [s.steps(ids, **GREEDY) for s, ids in zip(swifts, prompts, strict=True)]
    actual = [[], []]
    for _ in range(30):
        for number, steps in enumerate(running):
            actual[number] += next(steps, None).tokens if len(actual[number]) < 24 else []
    assert actual == expected


def test_rounds_of_two_responses_of_one_object_interleave(model_of, swift_of, prompt):
    model = model_of()
    swift = swift_of(model)
    prompts = [prompt(9, seed=1), prompt(14, seed=2)]
    expected = [model.generate(ids, **GREEDY)[0, ids.shape[1] :].tolist() for ids in prompts]
    first, second = (swift.steps(ids, **GREEDY) for ids in prompts)
    actual = [list(next(first).tokens), list(next(second).tokens)]
    actual[0] += next(first).tokens
    actual[1] += [token for step in second for token in step.tokens]
    assert torch.equal(swift.generate(prompts[1], **GREEDY)[0, 14:], torch.tensor(expected[1]))
    actual[0] += [token for step in first for token in step.tokens]
    assert actual == expected


def test_plain_generate_goes_on_beside_a_running_response(model_of, swift_of, prompt):
    model = model_of()
    expected = model.generate(prompt(), **GREEDY)
    steps = swift_of(model).steps(prompt(), **GREEDY)
    tokens = []
    for step in steps:
        tokens += step.tokens
        assert torch.equal(model.generate(prompt(), **GREEDY), expected)
    assert tokens == expected[0, 12:].tolist()


def in_threads(jobs) -> list[torch.Tensor]:
    """Results of all jobs, begun together, three times each."""
    results: list = [None] * len(jobs)
    barrier = threading.Barrier(len(jobs), timeout=60)

    def work(number: int) -> None:
        barrier.wait()
        results[number] = [jobs[number]() for _ in range(3)]

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return results


@pytest.mark.parametrize("sharing", ["two models", "one model", "one object"])
def test_threads_get_what_they_get_alone(swift_of, prompt, sharing):
    models = [tiny_model("llama"), tiny_model("gemma3_text", seed=4)]
    if sharing != "two models":
        models[1] = models[0]
    swifts = [swift_of(models[0], "unified"), swift_of(models[1], "every")]
    if sharing == "one object":
        swifts[1] = swifts[0]
    prompts = [prompt(9, seed=1), prompt(14, seed=2)]
    expected = [m.generate(ids, **GREEDY) for m, ids in zip(models, prompts, strict=True)]
    results = in_threads(
        [lambda n=n: swifts[n].generate(prompts[n], **GREEDY) for n in range(2)],
    )
    for number in range(2):
        assert len(results[number]) == 3
        assert all(torch.equal(one, expected[number]) for one in results[number])


def test_a_response_given_up_leaves_the_users_cache_as_far_as_it_came(model_of, swift_of, prompt):
    model = model_of()
    swift, cache = swift_of(model, "none"), DynamicCache(config=model.config)
    steps = swift.steps(prompt(), **{CACHE: cache}, **GREEDY)
    tokens = [*next(steps).tokens, *next(steps).tokens]
    steps.close()
    assert cache.get_seq_length() == 12 + len(tokens) - 1
    ids = torch.cat([prompt(), torch.tensor([tokens])], dim=1)
    expected = model.generate(ids, **GREEDY)
    assert torch.equal(model.generate(ids, **{CACHE: cache}, **GREEDY), expected)


@pytest.mark.parametrize("calls", [2, 3, 5])
def test_a_criterion_that_fails_leaves_the_users_cache_consistent(
    model_of, swift_of, prompt, calls
):
    """It is asked behind a token, which counts then."""
    model = model_of("gemma3_text")
    swift, cache = swift_of(model, "unified"), DynamicCache(config=model.config)
    seen = []

    def failing(ids, scores):
        seen.append(ids.clone())
        if len(seen) > calls:
            raise RuntimeError("stop here")
        return torch.zeros(len(ids), dtype=torch.bool)

    with pytest.raises(RuntimeError, match="stop here"):
        swift.generate(prompt(), **{CACHE: cache}, stopping_criteria=[failing], **GREEDY)
    assert cache.get_seq_length() == seen[-1].shape[1] - 1
    expected = model.generate(seen[-1], **GREEDY)
    assert torch.equal(swift.generate(seen[-1], **{CACHE: cache}, **GREEDY), expected)


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_an_error_leaves_the_users_cache_consistent(model_of, swift_of, prompt, calls):
    """With the tokens it covers it can be continued, by whomever."""
    model = model_of("gemma3_text")
    swift, cache = swift_of(model, "unified"), DynamicCache(config=model.config)
    seen = []

    def failing(ids, scores):
        seen.append(ids.clone())
        if len(seen) > calls:
            raise RuntimeError("stop here")
        return scores

    with pytest.raises(RuntimeError, match="stop here"):
        swift.generate(prompt(), **{CACHE: cache}, logits_processor=[failing], **GREEDY)
    ids = seen[-1]
    assert cache.get_seq_length() == ids.shape[1] - 1
    expected = model.generate(ids, **GREEDY)
    assert torch.equal(swift.generate(ids, **{CACHE: cache}, **GREEDY), expected)


def test_the_trace_is_of_the_response_that_started_last(model_of, swift_of, prompt):
    swift = swift_of(model_of(), "none", fresh=True)
    assert swift.trace is None
    out = swift.generate(prompt(), **GREEDY)
    assert swift.trace.token_ids == out[0, 12:].tolist()
    first = swift.trace
    swift.generate(prompt(seed=1), **GREEDY)
    assert swift.trace is not first
    assert first.token_ids == out[0, 12:].tolist()
    assert swift.trace.summary()["acceptance_rate"] == 1  # the draft is the target
