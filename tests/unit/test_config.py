"""Settings out of range are refused by name."""

from dataclasses import FrozenInstanceError

import pytest

from swift_sd import ConfigError, LayerSet, SwiftConfig
from swift_sd.config import MAX_DRAFT_TOKENS


@pytest.mark.parametrize("count", [-1, MAX_DRAFT_TOKENS + 1, 2.0, "5", True, None, float("inf")])
def test_a_wrong_number_of_draft_tokens_is_named(count):
    with pytest.raises(ConfigError, match="max_draft_tokens is"):
        SwiftConfig(max_draft_tokens=count)


@pytest.mark.parametrize("count", [0, 1, MAX_DRAFT_TOKENS])
def test_the_ends_of_the_range_are_allowed(count):
    assert SwiftConfig(max_draft_tokens=count).max_draft_tokens == count


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf"), "0.5", True])
def test_a_wrong_threshold_is_named(threshold):
    with pytest.raises(ConfigError, match="early_stop is"):
        SwiftConfig(early_stop=threshold)


@pytest.mark.parametrize("threshold", [0, 1, 0.0, 0.5, 1.0])
def test_every_probability_is_a_threshold(threshold):
    assert SwiftConfig(early_stop=threshold).early_stop == threshold


@pytest.mark.parametrize("layer_set", [[1, 2], {"depth": 5}, "set.json", 3])
def test_a_layer_set_of_another_type_is_refused_with_a_remedy(layer_set):
    with pytest.raises(ConfigError, match=r"layer_set is a .*LayerSet\.load"):
        SwiftConfig(layer_set=layer_set)


def test_the_papers_setting():
    config = SwiftConfig.paper()
    assert (config.layer_set, config.max_draft_tokens, config.early_stop) == (None, 25, 0.8)
    assert config.tree


@pytest.mark.parametrize(("name", "value"), [("tree", 1), ("tree", "no"), ("exact", "maybe")])
def test_other_wrong_values_are_named(name, value):
    with pytest.raises(ConfigError, match=f"{name} is"):
        SwiftConfig(**{name: value})


def test_the_plain_setting_never_drafts():
    assert SwiftConfig.plain().max_draft_tokens == 0


def test_settings_compare_by_value_and_cannot_be_changed():
    config = SwiftConfig(layer_set=LayerSet.every(5))
    assert config == SwiftConfig(layer_set=LayerSet.every(5))
    assert hash(config) == hash(SwiftConfig(layer_set=LayerSet.every(5)))
    with pytest.raises(FrozenInstanceError):
        config.early_stop = 0.5


@pytest.mark.parametrize("names", [(), ("copies",), ["model"], "model", ("model", "oracle"), None])
def test_wrong_drafters_are_named(names):
    with pytest.raises(ConfigError, match="drafters is"):
        SwiftConfig(drafters=names)


@pytest.mark.parametrize(
    "settings",
    [
        {"layer_set": LayerSet.every(5)},
        {"skip_ratio": 0.4},
        {"early_stop": 0.5},
        {"eager_search": True},
    ],
)
def test_settings_for_the_model_go_with_drafts_of_it(settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} is for drafts of the model"):
        SwiftConfig(drafters=("copying",), **settings)
