"""Tokens become text that is complete whenever it is shown."""

import pytest

from swift_sd import ConfigError, PromptError, Swift
from swift_sd.text import TextPieces


def pieces(tokenizer, groups: list[str]) -> list[str]:
    """What comes out when the text arrives in these groups of tokens."""
    out = TextPieces(tokenizer)
    shown = []
    for group in groups:
        shown += out.add(tokenizer.encode(group))
    return [*shown, *out.finish()]


def test_text_comes_out_before_it_ends(tokenizer):
    """Words at once or when they are complete: versions of transformers differ in it."""
    shown = pieces(tokenizer, ["hel", "lo wor", "ld"])
    assert "".join(shown) == "hello world"
    assert len(shown) > 1


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_nothing_is_lost_or_doubled_however_it_arrives(tokenizer, size):
    text = "Two words.\nA third line é ß,  with   spaces \n\n and an end"
    groups = [text[begin : begin + size] for begin in range(0, len(text), size)]
    assert "".join(pieces(tokenizer, groups)) == text


def test_no_empty_piece_is_shown(tokenizer):
    assert pieces(tokenizer, ["", "", "x"]) == ["x"]
    assert pieces(tokenizer, []) == []


def test_special_tokens_are_not_text(tokenizer):
    out = TextPieces(tokenizer)
    shown = [*out.add([1, *tokenizer.encode("ab"), 2]), *out.finish()]
    assert "".join(shown) == "ab"


def test_streamed_text_is_the_decoded_answer(model_of, tokenizer):
    model = model_of()
    swift = Swift(model, tokenizer)
    ids = tokenizer("hello there", return_tensors="pt", return_token_type_ids=False)
    kwargs = {"do_sample": False, "max_new_tokens": 40}
    new = model.generate(**ids, **kwargs)[0, ids["input_ids"].shape[1] :]
    text = "".join(swift.stream("hello there", **kwargs))
    assert text == tokenizer.decode(new, skip_special_tokens=True)
    assert len(text) > 5


def test_a_stream_begins_before_the_answer_is_complete(model_of, tokenizer):
    space = tokenizer.convert_tokens_to_ids(" ")

    def a_space_now_and_then(batch, ids):
        return [space] if len(ids) % 4 == 0 else list(range(space + 1, 90))

    swift = Swift(model_of(), tokenizer)
    kwargs = {"prefix_allowed_tokens_fn": a_space_now_and_then, "eos_token_id": None}
    stream = swift.stream("hello there", max_new_tokens=60, do_sample=False, **kwargs)
    assert next(stream)
    assert len(swift.trace.token_ids) < 30
    stream.close()


def test_chat_messages_need_a_chat_template(model_of, tokenizer):
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(ConfigError, match="no chat template"):
        Swift(model_of(), tokenizer).encode(messages)


def test_chat_messages_go_through_the_template(model_of, tokenizer, monkeypatch):
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    template += "{% if add_generation_prompt %}>{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    encoded = Swift(model_of(), tokenizer).encode([{"role": "user", "content": "hi"}])
    assert tokenizer.decode(encoded["input_ids"][0]) == "[hi]>"
    assert encoded["attention_mask"].tolist() == [[1] * 5]


def test_an_empty_text_is_refused(model_of, tokenizer):
    with pytest.raises(PromptError, match="empty"):
        Swift(model_of(), tokenizer).encode("")
