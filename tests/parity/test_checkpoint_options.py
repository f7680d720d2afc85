"""What only the checkpoint's generation config asks for gives way; a caller's wish is refused."""

import copy
import warnings

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, pipeline

from swift_sd import UnsupportedArgument
from swift_sd.decoding.options import NEUTRAL
from swift_sd.model.kv_cache import generate_cache_name
from swift_sd.testing.families import tiny_model
from swift_sd.versions import CACHES_ARE_MARKED

SAID = {
    "cache_implementation": {"cache_implementation": "static"},
    "use_cache": {"use_cache": False},
    "num_beams": {"num_beams": 3, "early_stopping": True, "length_penalty": 0.5},
    "num_return_sequences": {"num_beams": 3, "num_return_sequences": 2},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "dola_layers": {"dola_layers": "low"},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
    "assistant_early_exit": {"assistant_early_exit": 2},
    "output_attentions": {"output_attentions": True},
    "output_hidden_states": {"output_hidden_states": True},
    "force_words_ids": {"force_words_ids": [[5]], "num_beams": 2},
    "use_mtp": {"use_mtp": True},
    "prefill_chunk_size": {"prefill_chunk_size": 0},
    "several": {"cache_implementation": "static", "num_beams": 4, "no_repeat_ngram_size": 3},
}
GREEDY = {"max_new_tokens": 16, "do_sample": False}


@pytest.fixture
def saying():
    """`saying(**options)`: a model whose checkpoint says so, and what it makes of it without."""

    def make(**options):
        model = tiny_model("llama", attn_implementation="eager")
        own = {name: value for name, value in vars(model.generation_config).items() if value}
        model.generation_config = GenerationConfig(**{**own, **options})
        return model

    return make


def ways_in(model, swift, ids):
    """The three ways to a response, each giving its tokens `[1, n]`."""

    def by_steps(**kwargs):
        tokens = [token for step in swift.steps(ids, **kwargs) for token in step.tokens]
        return torch.cat([ids, torch.tensor([tokens])], dim=1)

    return (
        lambda **kwargs: swift.generate(ids, **kwargs),
        lambda **kwargs: model.generate(ids, custom_generate=swift, **kwargs),
        by_steps,
    )


@pytest.mark.parametrize("name", SAID)
def test_the_checkpoints_own_options_give_way_with_one_warning(saying, swift_of, prompt, name):
    model = saying(**SAID[name])
    before = copy.deepcopy(model.generation_config)
    kept = {"no_repeat_ngram_size": 3} if name == "several" else {}
    expected = tiny_model("llama", attn_implementation="eager").generate(prompt(), **GREEDY, **kept)
    swift = swift_of(model)
    told = []
    for respond in ways_in(model, swift, prompt()):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            assert torch.equal(respond(**GREEDY), expected)
        told += [str(one.message) for one in heard if "generation config" in str(one.message)]
    assert len(told) == 1
    assert all(f"{option}=" in told[0] for option in SAID[name] if option in NEUTRAL)
    assert model.generation_config == before


REFUSED = {
    "cache_implementation": "offloaded",
    "use_cache": False,
    "num_beams": 2,
    "penalty_alpha": 0.7,
    "prompt_lookup_num_tokens": 4,
    "output_hidden_states": True,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_caller_asks_for_is_refused_whatever_the_checkpoint_says(
    saying, swift_of, prompt, name
):
    model = saying(cache_implementation="static", num_beams=3)
    asked = {name: REFUSED[name], "max_new_tokens": 5}
    config = GenerationConfig(**asked)
    for respond in ways_in(model, swift_of(model), prompt()):
        for kwargs in (asked, {"generation_config": config}):
            with pytest.raises(UnsupportedArgument) as caught:
                respond(**kwargs)
            assert caught.value.argument == name


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_keyword_is_the_callers_even_if_the_checkpoint_says_the_same(saying, swift_of, prompt):
    swift = swift_of(saying(num_beams=3))
    for call in (swift.generate, swift.steps):
        with pytest.raises(UnsupportedArgument, match="num_beams=3"):
            call(prompt(), num_beams=3, max_new_tokens=5)


@pytest.mark.filterwarnings("ignore:the model's generation config")
def test_a_copy_of_the_checkpoints_config_asks_for_nothing_new(saying, swift_of, prompt):
    model = saying(cache_implementation="static", num_beams=3)
    config = copy.deepcopy(model.generation_config)
    config.max_new_tokens = 9
    before = copy.deepcopy(config)
    expected = tiny_model("llama").generate(prompt(), max_new_tokens=9)
    swift = swift_of(model)
    assert torch.equal(swift.generate(prompt(), generation_config=config), expected)
    output = model.generate(prompt(), generation_config=config, custom_generate=swift)
    assert torch.equal(output, expected)
    assert config == before


@pytest.mark.filterwarnings("ignore:the model's generation config")
def test_samples_are_those_of_sampling_without(saying, swift_of, prompt):
    model = saying(num_beams=4, top_k=1)  # of several beams each keeps two tokens at least
    swift = swift_of(model)
    sampled = {"max_new_tokens": 16, "do_sample": True}
    torch.manual_seed(3)
    expected = tiny_model("llama").generate(prompt(), top_k=1, **sampled)
    torch.manual_seed(3)
    assert torch.equal(swift.generate(prompt(), **sampled), expected)
    with pytest.raises(UnsupportedArgument, match="pass num_beams=1"):  # its top_k was made 2
        model.generate(prompt(), custom_generate=swift, **sampled)
    torch.manual_seed(3)
    output = model.generate(prompt(), custom_generate=swift, num_beams=1, **sampled)
    assert torch.equal(output, expected)


@pytest.mark.filterwarnings("ignore:the model's generation config")
def test_a_cache_that_a_caller_gives_is_continued(saying, swift_of, prompt):
    model, plain = saying(use_cache=False, cache_implementation="static"), tiny_model("llama")
    asked = {"max_new_tokens": 8, "return_dict_in_generate": True}
    first = swift_of(model).generate(prompt(), **asked)
    (name,) = {"cache", "past_key_values"} & {*first}
    again = swift_of(model).generate(first.sequences, **{name: first[name]}, max_new_tokens=8)
    assert torch.equal(again, plain.generate(prompt(), max_new_tokens=16))


@pytest.mark.skipif(not CACHES_ARE_MARKED, reason="nobody can tell whose an empty cache is")
@pytest.mark.filterwarnings("ignore:the model's generation config")
def test_an_empty_cache_that_a_caller_gives_is_filled(saying, swift_of, prompt):
    model, cache = saying(use_cache=False), DynamicCache()
    swift = swift_of(model)
    given = {generate_cache_name(): cache}
    output = model.generate(prompt(), custom_generate=swift, **given, max_new_tokens=8)
    assert cache.get_seq_length() == output.shape[1] - 1


@pytest.mark.filterwarnings("ignore:the model's generation config")
def test_text_streams_from_such_a_checkpoint(saying, swift_of, tokenizer):
    model = saying(num_beams=3, use_cache=False)
    swift = swift_of(model, tokenizer=tokenizer)
    ids = tokenizer("abc", return_tensors="pt")["input_ids"]
    expected = tiny_model("llama").generate(ids, max_new_tokens=12)[0, ids.shape[1] :]
    text = tokenizer.decode(expected, skip_special_tokens=True)
    assert "".join(swift.stream("abc", max_new_tokens=12)) == text


def test_a_pipeline_ends_at_its_stop_sequence(model_of, swift_of, tokenizer):
    model = model_of()
    swift = swift_of(model, tokenizer=tokenizer)
    asked = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None}
    plain = pipeline("text-generation", model, tokenizer=tokenizer)
    stop = plain("hello", **asked)[0]["generated_text"][14:16]
    expected = plain("hello", stop_sequence=stop, **asked)
    assert len(expected[0]["generated_text"]) < 35
    assert plain("hello", stop_sequence=stop, custom_generate=swift, **asked) == expected
    ours = pipeline(
        "text-generation", model, tokenizer=tokenizer, custom_generate=swift, stop_sequence=stop
    )
    assert ours("hello", **asked) == expected


@pytest.mark.filterwarnings("ignore:the model's generation config")
def test_a_pipeline_works_with_such_a_checkpoint(saying, swift_of, tokenizer):
    asked = {"max_new_tokens": 12, "do_sample": False}
    plain = pipeline("text-generation", tiny_model("llama"), tokenizer=tokenizer)
    model = saying(num_beams=3, cache_implementation="static")
    ours = pipeline("text-generation", model, tokenizer=tokenizer, custom_generate=swift_of(model))
    assert ours("hello", **asked) == plain("hello", **asked)
