import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift_sd.serve.wording import Wording


def said(tokenizer, ids, stop=()):
    wording = Wording(tokenizer, stop)
    pieces = []
    for place, token in enumerate(ids):
        pieces += wording.add(token, f"{place}")
        if wording.stopped:
            break
    pieces += wording.finish()
    return pieces, wording.stopped


@given(text=st.text(min_size=1, max_size=30))
@settings(max_examples=100)
def test_pieces_make_up_the_text(bytes_tokenizer, text):
    ids = bytes_tokenizer(text).input_ids
    pieces, _ = said(bytes_tokenizer, ids)
    assert "".join(piece.text for piece in pieces) == bytes_tokenizer.decode(ids)


@given(ids=st.lists(st.integers(0, 258), max_size=40))
@settings(max_examples=100)
def test_broken_characters_end_somewhere(bytes_tokenizer, ids):
    pieces, _ = said(bytes_tokenizer, ids)
    text = "".join(piece.text for piece in pieces)
    expected = bytes_tokenizer.decode(ids, skip_special_tokens=True)
    assert text.replace("\ufffd", "") == expected.replace("\ufffd", "")


def test_a_character_belongs_to_the_token_that_completes_it(bytes_tokenizer):
    ids = bytes_tokenizer("aß€").input_ids  # 1, 2 and 3 bytes
    pieces, _ = said(bytes_tokenizer, ids)
    assert [(piece.text, piece.origin) for piece in pieces] == [("a", "0"), ("ß", "2"), ("€", "5")]


@given(text=st.text("ab", max_size=20), stop=st.lists(st.text("ab", min_size=1, max_size=4)))
@settings(max_examples=200)
def test_text_ends_before_the_first_stop_string(bytes_tokenizer, text, stop):
    pieces, stopped = said(bytes_tokenizer, bytes_tokenizer(text).input_ids, stop)
    told = "".join(piece.text for piece in pieces)
    assert stopped == any(string in text for string in stop)
    if not stopped:
        assert told == text
        return
    # As soon as a stop string is complete the text ends before it.
    first = min(text.index(string) + len(string) for string in stop if string in text)
    seen = text[:first]
    assert told == seen[: min(seen.index(string) for string in stop if string in seen)]


@pytest.mark.parametrize("stop", ["bcd", "b", "xyz"])
def test_what_may_become_a_stop_string_is_held_back(bytes_tokenizer, stop):
    wording = Wording(bytes_tokenizer, [stop])
    told = ""
    for token in bytes_tokenizer("abcabcd").input_ids:
        told += "".join(piece.text for piece in wording.add(token, ""))
        assert not any(told.endswith(stop[:length]) for length in range(1, len(stop) + 1))
