"""Arguments that change nothing are accepted, whatever form they come in."""

import inspect

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from swift_sd import PromptError, UnsupportedArgument
from swift_sd.bench.conversation import encoded_turn
from swift_sd.testing.families import tiny_model

ASKED = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture
def typed(tokenizer):
    """The tokenizer, but one that returns `token_type_ids`, as BERT's do."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        model_input_names=names,
        chat_template=TEMPLATE,
    )


def test_a_tokenizer_may_return_kinds_of_tokens(model_of, swift_of, typed):
    model = model_of()
    swift = swift_of(model, tokenizer=typed)
    messages = [{"role": "user", "content": "hello"}]
    assert "token_type_ids" in typed("hello", return_tensors="pt")
    ids = typed("hello", return_tensors="pt")["input_ids"]
    expected = typed.decode(model.generate(ids, **ASKED)[0, 5:], skip_special_tokens=True)
    for prompt in ("hello", messages):
        assert {*swift.encode(prompt)} == {"input_ids", "attention_mask"}
        assert "".join(swift.stream(prompt, **ASKED)) == expected
    asked = encoded_turn(model, typed, ["hello"], [])
    assert torch.equal(asked["input_ids"], ids)
    assert {*asked} == {"input_ids", "attention_mask"}


def test_zero_token_type_ids_change_nothing(model_of, swift_of, typed):
    model = model_of()
    inputs = typed("hello", return_tensors="pt")
    output = swift_of(model).generate(**inputs, **ASKED)
    assert torch.equal(output, model.generate(inputs["input_ids"], **ASKED))
    output = swift_of(model).generate(inputs["input_ids"], token_type_ids=None, **ASKED)
    assert output.shape == (1, 21)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_other_token_type_ids_are_refused_by_name(model_of, swift_of, prompt, family):
    """To gpt2 zeros are others too: it adds the embedding of token 0."""
    model, kinds = model_of(family), torch.zeros_like(prompt())
    if family == "llama":
        kinds[0, 3] = 1
    else:
        changed = model.generate(prompt(), token_type_ids=kinds, **ASKED)
        assert not torch.equal(changed, model.generate(prompt(), **ASKED))
    swift = swift_of(model)
    for call in (swift.generate, swift.steps):
        with pytest.raises(UnsupportedArgument, match="token_type_ids=") as caught:
            call(prompt(), token_type_ids=kinds, **ASKED)
        assert caught.value.argument == "token_type_ids"


def test_an_empty_prompt_with_kinds_of_tokens_is_told_as_one(swift_of, with_kinds):
    nothing = torch.zeros(1, 0, dtype=torch.long)
    with pytest.raises(PromptError, match="empty"):
        swift_of(with_kinds).generate(nothing, token_type_ids=nothing, **ASKED)


def test_whether_a_model_ignores_zeros_is_tried_once(swift_of, prompt, with_kinds):
    swift, zeros = swift_of(with_kinds), torch.zeros_like(prompt())
    for _ in range(3):
        swift.generate(prompt(), token_type_ids=zeros, **ASKED)
    assert sum(kinds is not None for kinds in with_kinds.given) == 1


@pytest.fixture
def with_kinds():
    """A model that takes kinds of tokens and ignores them; `given` are those that it was given."""
    model = tiny_model("llama")
    plain, given = type(model), []

    def forward(self, *args, token_type_ids=None, **kwargs):
        given.append(token_type_ids)
        return plain.forward(self, *args, **kwargs)

    *known, rest = inspect.signature(plain.forward).parameters.values()
    kinds = inspect.Parameter("token_type_ids", inspect.Parameter.KEYWORD_ONLY, default=None)
    forward.__signature__ = inspect.Signature([*known, kinds, rest])
    own = {"forward": forward, "__module__": __name__, "given": given}
    model.__class__ = type("WithKinds", (plain,), own)
    return model


def test_zeros_are_accepted_where_the_model_ignores_them(swift_of, prompt, with_kinds):
    """As by models that tell text from images by them."""
    model = with_kinds
    swift = swift_of(model)
    expected = model.generate(prompt(), **ASKED)
    zeros = torch.zeros_like(prompt())
    assert torch.equal(swift.generate(prompt(), token_type_ids=zeros, **ASKED), expected)
    output = model.generate(prompt(), custom_generate=swift, token_type_ids=zeros, **ASKED)
    assert torch.equal(output, expected)


NEUTRAL = {
    "a mask of bools": {"attention_mask": torch.ones(1, 12, dtype=torch.bool)},
    "a mask of bytes": {"attention_mask": torch.ones(1, 12, dtype=torch.uint8)},
    "a mask of small integers": {"attention_mask": torch.ones(1, 12, dtype=torch.int32)},
    "a mask of floats": {"attention_mask": torch.ones(1, 12, dtype=torch.float16)},
    "plain positions": {"position_ids": torch.arange(12)[None]},
    "plain positions, small": {"position_ids": torch.arange(12, dtype=torch.int32)[None]},
    "no labels": {"labels": None},
    "causal": {"is_causal": True},
    "no internals": {"output_attentions": False, "output_hidden_states": False},
    "one beam": {"num_beams": 1, "num_return_sequences": 1, "num_beam_groups": 1},
    "beams' own": {"early_stopping": True, "length_penalty": 2.0, "diversity_penalty": 0.0},
    "no other method": {"penalty_alpha": 0.0, "dola_layers": None, "use_mtp": False},
    "its cache": {"use_cache": True, "cache_implementation": "dynamic"},
    "a cache of before": {"cache_implementation": "hybrid"},
    "nobody beside": {"assistant_model": None, "streamer": None, "synced_gpus": False},
    "no constraints": {"constraints": None, "force_words_ids": None},
}


def test_what_is_neutral_to_generate_is_neutral_here(model_of, swift_of, prompt):
    model = model_of()
    swift = swift_of(model)
    expected = model.generate(prompt(), **ASKED)
    for name, given in NEUTRAL.items():
        assert torch.equal(swift.generate(prompt(), **given, **ASKED), expected), name
        output = model.generate(prompt(), custom_generate=swift, **given, **ASKED)
        assert torch.equal(output, expected), name


def test_no_router_logits_are_none(model_of, swift_of, prompt):
    model = model_of("mixtral")
    output = swift_of(model).generate(prompt(), output_router_logits=False, **ASKED)
    assert torch.equal(output, model.generate(prompt(), **ASKED))
    with pytest.raises(UnsupportedArgument, match="output_router_logits"):
        swift_of(model).generate(prompt(), output_router_logits=True, **ASKED)
