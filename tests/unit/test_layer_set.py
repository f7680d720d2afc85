"""Which sets of sublayers can exist, and what survives a file."""

import copy
import json
import pickle
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_sd import LayerSet, LayerSetError


@st.composite
def layer_sets(draw: st.DrawFn) -> LayerSet:
    depth = draw(st.integers(1, 12))
    inner = st.sets(st.integers(1, depth - 2)) if depth > 2 else st.just(set())
    return LayerSet(depth, frozenset(draw(inner)), frozenset(draw(inner)))


def test_the_named_sets_skip_what_their_names_say():
    none, every, unified = LayerSet.none(6), LayerSet.every(6), LayerSet.unified(6)
    assert (none.attention, none.mlp) == (frozenset(), frozenset())
    assert every.attention == every.mlp == frozenset({1, 2, 3, 4})
    assert unified.attention == unified.mlp == frozenset({1, 3})


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("constructor", ["none", "every", "unified"])
def test_a_model_of_one_or_two_layers_has_nothing_to_skip(depth, constructor):
    layer_set = getattr(LayerSet, constructor)(depth)
    assert layer_set == LayerSet(depth)
    assert layer_set.skip_ratio == 0


def test_with_three_layers_only_the_middle_one_may_go():
    assert LayerSet.every(3).attention == {1}
    assert LayerSet.unified(3) == LayerSet.every(3)


def test_any_iterable_of_layers_becomes_a_frozenset():
    layer_set = LayerSet(5, [3, 1, 3], (layer for layer in (2,)))
    assert layer_set.attention == frozenset({1, 3})
    assert layer_set.mlp == frozenset({2})
    assert isinstance(layer_set.mlp, frozenset)


@pytest.mark.parametrize("kind", ["attention", "mlp"])
@pytest.mark.parametrize("layer", [0, 4, 5, -1, -4, True, False, 1.0, 1.5, "1", None])
def test_a_layer_that_cannot_be_skipped_is_named(kind, layer):
    with pytest.raises(LayerSetError) as caught:
        LayerSet(5, **{kind: [layer]})
    assert f"{kind} layer {layer!r}" in str(caught.value)
    assert "layers 1 to 3" in str(caught.value)


@pytest.mark.parametrize("depth", [0, -3, True, 5.0, "5", None])
def test_a_depth_that_is_no_number_of_layers_is_named(depth):
    with pytest.raises(LayerSetError, match="depth is"):
        LayerSet(depth)


def test_equal_sets_are_one_key_and_different_ones_are_not():
    scores = {LayerSet(6, [1, 2], [3]): "a"}
    assert scores[LayerSet(6, {2, 1}, frozenset({3}))] == "a"
    assert LayerSet(6, [3], [1, 2]) not in scores
    assert LayerSet(7, [1, 2], [3]) not in scores


def test_a_set_cannot_be_changed():
    layer_set = LayerSet.unified(5)
    with pytest.raises(FrozenInstanceError):
        layer_set.depth = 9


def test_skip_ratio_counts_both_kinds_against_what_may_be_skipped():
    assert LayerSet(6, [1, 2], [3]).skip_ratio == 3 / 8
    assert LayerSet.every(6).skip_ratio == 1
    assert LayerSet.none(6).skip_ratio == 0


def test_its_text_gives_the_counts():
    assert str(LayerSet(6, [1, 2], [3])) == "2 attention and 1 MLP sublayers of 6 layers skipped"


@given(layer_sets())
def test_every_set_survives_json_pickle_and_copy(layer_set):
    assert LayerSet.from_dict(json.loads(json.dumps(layer_set.to_dict()))) == layer_set
    assert pickle.loads(pickle.dumps(layer_set)) == layer_set
    assert copy.deepcopy(layer_set) == layer_set


def test_a_saved_set_is_readable_json_and_loads_back(tmp_path):
    layer_set = LayerSet(30, [28, 3, 11], [])
    layer_set.save(tmp_path / "set.json")
    layer_set.save(str(tmp_path / "same.json"))
    written = json.loads((tmp_path / "set.json").read_text())
    assert written == {"depth": 30, "attention": [3, 11, 28], "mlp": []}
    assert LayerSet.load(tmp_path / "set.json") == layer_set
    assert LayerSet.load(str(tmp_path / "same.json")) == layer_set


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(LayerSetError, match="cannot read") as caught:
            LayerSet.load(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"depth": 5, "atten', b"\xff\xfe\x00", b"hello"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "set.json"
    path.write_bytes(content)
    with pytest.raises(LayerSetError, match="damaged") as caught:
        LayerSet.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[1, 2]", "a layer set is a JSON object"),
        ("null", "a layer set is a JSON object"),
        ('{"depth": 5, "attention": []}', "a layer set is a JSON object"),
        ('{"depth": 5, "attention": [], "mlp": [], "score": 1}', "a layer set is a JSON object"),
        ('{"depth": 5, "attention": 1, "mlp": []}', '"attention" must be a list'),
        ('{"depth": 5, "attention": [], "mlp": "12"}', '"mlp" must be a list'),
        ('{"depth": 5, "attention": [], "mlp": {"1": 2}}', '"mlp" must be a list'),
        ('{"depth": 5, "attention": [1.0], "mlp": []}', "attention layer 1.0"),
        ('{"depth": 5, "attention": [], "mlp": [true]}', "mlp layer True"),
        ('{"depth": 5, "attention": [], "mlp": [[1]]}', r"mlp layer \[1\]"),
        ('{"depth": 5, "attention": [9], "mlp": []}', "attention layer 9"),
        ('{"depth": 5.0, "attention": [], "mlp": []}', "depth is 5.0"),
        ('{"depth": null, "attention": [], "mlp": []}', "depth is None"),
    ],
)
def test_a_file_of_something_else_is_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "set.json"
    path.write_text(content)
    with pytest.raises(LayerSetError, match=reason) as caught:
        LayerSet.load(path)
    assert str(path) in str(caught.value)


def test_a_long_foreign_value_is_shortened_in_the_message():
    with pytest.raises(LayerSetError) as caught:
        LayerSet.from_dict({"weights": list(range(1000))})
    assert len(str(caught.value)) < 250
