"""What cannot be honoured is refused by name, before any work is done."""

import pickle

import pytest
import torch
from transformers import StaticCache

from swift_sd import (
    ConfigError,
    LayerSet,
    LayerSetError,
    PromptError,
    Swift,
    SwiftConfig,
    UnsupportedArgument,
)
from swift_sd.model.kv_cache import generate_cache_name
from swift_sd.testing.families import tiny_model

CACHE = generate_cache_name()

REFUSED = {
    "num_beams": {"num_beams": 2},
    "num_return_sequences": {"num_return_sequences": 2, "do_sample": True},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
    "assistant_early_exit": {"assistant_early_exit": 2},
    "output_attentions": {"output_attentions": True, "return_dict_in_generate": True},
    "output_hidden_states": {"output_hidden_states": True, "return_dict_in_generate": True},
    "use_cache": {"use_cache": False},
    "cache_implementation": {"cache_implementation": "static"},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "dola_layers": {"dola_layers": "low"},
    "force_words_ids": {"force_words_ids": [[5]]},
    "constraints": {"constraints": [object()]},
    "use_mtp": {"use_mtp": True},
    "prefill_chunk_size": {"prefill_chunk_size": 0},
}


@pytest.fixture
def model():
    return tiny_model("llama", attn_implementation="eager")  # output_attentions asks for it


@pytest.mark.filterwarnings("ignore::UserWarning")  # transformers' own, about its deprecations
@pytest.mark.parametrize("argument", REFUSED)
def test_arguments_are_refused_by_name_either_way(model, swift_of, prompt, argument):
    swift = swift_of(model)
    before = swift.trace
    for call in (
        lambda **kwargs: swift.generate(prompt(), **kwargs),
        lambda **kwargs: model.generate(prompt(), custom_generate=swift, **kwargs),
        lambda **kwargs: swift.steps(prompt(), **kwargs),
    ):
        with pytest.raises(UnsupportedArgument, match=f"^{argument}=") as caught:
            call(max_new_tokens=5, **REFUSED[argument])
        assert caught.value.argument == argument
        assert "model.generate" in str(caught.value)
    assert swift.trace is before  # nothing was started


def test_token_healing_is_refused_with_the_remedy(model, swift_of, prompt, tokenizer):
    swift = swift_of(model, tokenizer=tokenizer)
    for call in (swift.generate, swift.steps):
        with pytest.raises(UnsupportedArgument, match="heal_tokens") as caught:
            call(prompt(), token_healing=True, max_new_tokens=5)
        assert caught.value.argument == "token_healing"


@pytest.mark.parametrize("mask", [2, [0] * 4 + [1] * 8])
def test_positions_of_ones_own_are_refused_with_a_mask_too(model, swift_of, prompt, mask):
    mask = torch.full((1, 12), mask) if isinstance(mask, int) else torch.tensor([mask])
    positions = {} if mask.max() == 2 else {"position_ids": torch.arange(12)[None]}
    with pytest.raises(UnsupportedArgument) as caught:
        swift_of(model).generate(prompt(), attention_mask=mask, max_new_tokens=5, **positions)
    assert caught.value.argument == "position_ids"


def test_an_assistant_is_refused(model, swift_of, prompt):
    with pytest.raises(UnsupportedArgument) as caught:
        swift_of(model).generate(prompt(), assistant_model=model, max_new_tokens=5)
    assert caught.value.argument == "assistant_model"


def test_embeddings_instead_of_ids_are_refused(model, swift_of, prompt):
    embeddings = model.get_input_embeddings()(prompt()).detach()
    for ids in (None, prompt()):
        with pytest.raises(UnsupportedArgument) as caught:
            swift_of(model).generate(ids, inputs_embeds=embeddings, max_new_tokens=5)
        assert caught.value.argument == "inputs_embeds"


def test_another_kind_of_cache_is_refused(model, swift_of, prompt):
    cache = StaticCache(config=model.config, max_cache_len=64)
    with pytest.raises(UnsupportedArgument, match="StaticCache") as caught:
        swift_of(model).generate(prompt(), **{CACHE: cache}, max_new_tokens=5)
    assert caught.value.argument == CACHE


def test_a_mask_with_holes_is_refused(model, swift_of, prompt):
    for hidden in (slice(5, 6), slice(10, 12), slice(0, 12)):
        mask = torch.ones_like(prompt())
        mask[:, hidden] = 0
        with pytest.raises(UnsupportedArgument) as caught:
            swift_of(model).generate(prompt(), attention_mask=mask, max_new_tokens=5)
        assert caught.value.argument == "attention_mask"


def test_a_refusal_survives_a_process_boundary(model, swift_of, prompt):
    with pytest.raises(UnsupportedArgument) as caught:
        swift_of(model).generate(prompt(), num_beams=3, max_new_tokens=5)
    received = pickle.loads(pickle.dumps(caught.value))
    assert (received.argument, str(received)) == ("num_beams", str(caught.value))


def test_a_misspelt_argument_is_transformers_own_error(model, swift_of, prompt):
    with pytest.raises(ValueError, match="max_new_tokenz"):
        swift_of(model).generate(prompt(), max_new_tokenz=5)


def test_a_batch_is_refused(model, swift_of, prompt):
    with pytest.raises(PromptError, match="2 rows"):
        swift_of(model).generate(prompt().repeat(2, 1), max_new_tokens=5)


def test_an_empty_prompt_is_refused(model, swift_of):
    with pytest.raises(PromptError, match="empty"):
        swift_of(model).generate(torch.zeros(1, 0, dtype=torch.long), max_new_tokens=5)


@pytest.mark.parametrize("length", [257, 300])
def test_a_prompt_that_leaves_no_room_is_refused(model, swift_of, prompt, length):
    with pytest.raises(PromptError, match=f"{length} tokens and the model's context is 256"):
        swift_of(model).generate(prompt(length), max_new_tokens=5)


def test_another_model_than_its_own_is_refused(model, swift_of, prompt):
    other = tiny_model("llama", seed=1)
    with pytest.raises(ConfigError, match="another model"):
        other.generate(prompt(), custom_generate=swift_of(model), max_new_tokens=5)


@pytest.mark.parametrize("depth", [4, 6])
def test_a_layer_set_for_another_model_is_refused_at_once(model, depth):
    with pytest.raises(LayerSetError, match=f"for {depth} layers"):
        Swift(model, config=SwiftConfig(layer_set=LayerSet.none(depth)))


def test_stop_strings_without_a_tokenizer_are_refused(model, swift_of, prompt):
    with pytest.raises(ConfigError, match="tokenizer"):
        swift_of(model).generate(prompt(), stop_strings="x", max_new_tokens=5)


def test_text_without_a_tokenizer_is_refused(model, swift_of):
    swift = swift_of(model)
    for call in (lambda: swift.encode("hello"), lambda: next(swift.stream("hello"))):
        with pytest.raises(ConfigError, match=r"Swift\(model, tokenizer\)"):
            call()


def test_a_report_before_any_response_is_refused(model, swift_of):
    with pytest.raises(ConfigError, match="nothing was generated yet"):
        swift_of(model, fresh=True).report()


def test_after_a_refusal_it_works(model, swift_of, prompt):
    swift = swift_of(model)
    with pytest.raises(UnsupportedArgument):
        swift.generate(prompt(), num_beams=2, max_new_tokens=5)
    expected = model.generate(prompt(), max_new_tokens=20)
    assert torch.equal(swift.generate(prompt(), max_new_tokens=20), expected)
