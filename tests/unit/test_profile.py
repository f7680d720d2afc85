"""What was learned outlives the process, and never gets in the way."""

import copy
import dataclasses
import errno
import io
import json
import os
from dataclasses import replace

import pytest
import torch

from swift_sd import ConfigError, LayerSet, Profile, ProfileError, Swift, SwiftConfig
from swift_sd.adapting import profile as profiles
from swift_sd.testing.families import tiny_model
from swift_sd.testing.planted import planted_model

EAGER = SwiftConfig(eager_search=True)


@pytest.fixture(scope="module")
def model():
    return planted_model(tiny_model("llama"), extra_layers=5)[0]


def respond(swift, prompt, new=48):
    return swift.generate(prompt(), do_sample=False, max_new_tokens=new, eos_token_id=None)


@pytest.fixture(scope="module")
def learned(model):
    swift = Swift(model, config=EAGER)
    ids = torch.randint(3, 100, (1, 16), generator=torch.Generator().manual_seed(0))
    swift.generate(ids, do_sample=False, max_new_tokens=64, eos_token_id=None)
    return swift.profile


def search_of(profile):
    return profile.learned["kinds"][-1]["search"]


def known_of(profile):
    """Sets scored, for any kind of input: that another one is founded loses none of them."""
    kinds = profile.learned["kinds"]
    return sum(len(kind["search"]["scores"]) for kind in kinds if kind["search"])


def test_it_is_read_as_it_was_written(learned, tmp_path):
    learned.save(tmp_path / "x.json")
    assert Profile.load(tmp_path / "x.json") == learned
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert search_of(learned)["told"] > 0


def test_one_that_was_assigned_outlives_a_change_of_the_model(model, learned, prompt):
    swift = Swift(model, config=EAGER)
    swift.profile = learned
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    try:
        respond(swift, prompt, new=2)
        assert known_of(swift.profile) >= known_of(learned)
    finally:
        handle.remove()


@pytest.mark.parametrize("as_file", [False, True])
def test_a_swift_starts_from_it(model, learned, prompt, tmp_path, as_file):
    learned.save(tmp_path / "x.json")
    swift = Swift(model, config=EAGER, profile=tmp_path / "x.json" if as_file else learned)
    assert swift.layer_set == LayerSet.from_dict(search_of(learned)["best"])
    expected = model.generate(prompt(), do_sample=False, max_new_tokens=48, eos_token_id=None)
    assert torch.equal(respond(swift, prompt), expected)
    assert known_of(swift.profile) >= known_of(learned)
    assert swift.profile.learned["costs"] == learned.learned["costs"]


def test_another_machine_keeps_the_sets_and_measures_costs_anew(model, learned, prompt):
    elsewhere = Profile(learned.model, {**learned.machine, "threads": 999}, learned.learned)
    swift = Swift(model, config=EAGER, profile=elsewhere)
    assert swift.layer_set == LayerSet.from_dict(search_of(learned)["best"])
    assert swift.profile.learned["costs"] is None
    respond(swift, prompt)
    assert swift.profile.learned["costs"] is not None
    assert known_of(swift.profile) >= known_of(learned)


def bits_of(swift):
    return swift._experience._draft_bits()


def test_a_precision_that_was_found_is_used_and_keeps_its_sets(model, learned, tmp_path):
    found = replace(learned, bits=4)
    found.save(tmp_path / "x.json")
    swift = Swift(model, profile=tmp_path / "x.json")
    assert bits_of(Swift(model, profile=learned)) == 8
    assert bits_of(swift) == 4
    assert swift.profile.bits == 4  # and handed on
    assert bits_of(Swift(model, config=SwiftConfig(draft_bits=8), profile=found)) == 8
    elsewhere = replace(found, machine={**found.machine, "threads": 999})
    assert bits_of(Swift(model, profile=elsewhere)) == 4
    wide = replace(elsewhere, bits=16)  # what `learned` was found with
    assert wide.learned["bits"] == 16
    assert Swift(model, profile=wide).layer_set == LayerSet.from_dict(search_of(wide)["best"])


def test_a_precision_that_does_not_exist_is_damage(learned, tmp_path):
    replace(learned, bits=5).save(tmp_path / "x.json")
    with pytest.raises(ProfileError, match="5 bits"):
        Profile.load(tmp_path / "x.json")


def test_the_gain_is_that_of_the_prompts(learned):
    kind = learned.learned["kinds"][0]
    kinds = [
        {**kind, "prompts": 3, "search": {**kind["search"], "gain": 2.0}},
        {**kind, "prompts": 1, "search": None},
    ]
    assert replace(learned, learned={**learned.learned, "kinds": kinds}).gain == 1.75
    assert replace(learned, learned={**learned.learned, "kinds": []}).gain == 1.0
    assert learned.gain == kind["search"]["gain"] >= 1


def test_another_model_is_refused_and_the_difference_named(learned):
    with pytest.raises(ProfileError, match="another model: its depth is 10, here it is 5"):
        Swift(tiny_model("llama"), profile=learned)


def test_other_weights_are_another_model(model, learned):
    import copy

    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    with pytest.raises(ProfileError, match="its digest is"):
        Swift(other, profile=learned)


def test_the_same_weights_in_bfloat16_are_the_same_model(model, learned):
    import copy

    learned.check_model(copy.deepcopy(model).to(torch.bfloat16))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": 2}', "[" * 100_000, "\x00"])
def test_a_damaged_file_is_refused_by_name(model, tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ProfileError, match=r"x\.json"):
        Swift(model, profile=tmp_path / "x.json")


def test_a_missing_file_and_one_of_a_later_version_are_refused(model, learned, tmp_path):
    with pytest.raises(ProfileError, match="cannot read"):
        Swift(model, profile=tmp_path / "absent.json")
    learned.save(tmp_path / "x.json")
    data = json.loads((tmp_path / "x.json").read_text()) | {"version": 99}
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(ProfileError, match="version 99"):
        Profile.load(tmp_path / "x.json")


@pytest.mark.parametrize("key", ["kinds", "costs"])
@pytest.mark.parametrize("value", [3, "x", [3], {"a": 1}])
def test_damage_inside_is_found_before_any_response(model, learned, key, value):
    damaged = Profile(learned.model, learned.machine, {**learned.learned, key: value})
    with pytest.raises(ProfileError, match="damaged"):
        Swift(model, profile=damaged)


def test_numbers_that_are_none_are_not_written(learned, tmp_path):
    damaged = dataclasses.replace(learned, learned={"costs": float("nan")})
    with pytest.raises(ProfileError, match="cannot write"):
        damaged.save(tmp_path / "x.json")
    assert not list(tmp_path.iterdir())


def full_disk(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_folder(*args, **kwargs):
    full_disk(None)


def at_the_folder(monkeypatch):
    monkeypatch.setattr(profiles.tempfile, "TemporaryDirectory", no_folder)


def at_writing(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            full_disk(None)

    monkeypatch.setattr(profiles.Path, "open", lambda *_, **__: Full())


def at_syncing(monkeypatch):
    monkeypatch.setattr(profiles.os, "fsync", full_disk)


@pytest.mark.parametrize("fill", [at_the_folder, at_writing, at_syncing])
def test_a_full_disk_is_said_and_what_was_there_stays(learned, tmp_path, monkeypatch, fill):
    (tmp_path / "x.json").write_text("before")
    with monkeypatch.context() as patch:
        fill(patch)
        with pytest.raises(ProfileError, match="No space left"):
            learned.save(tmp_path / "x.json")
    assert (tmp_path / "x.json").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["self_attn.q_proj", "mlp.down_proj"])
def test_a_model_of_which_one_matrix_was_tuned_is_another_one(model, learned, name):
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.get_submodule(f"model.layers.3.{name}").weight.mul_(1.1)
    with pytest.raises(ProfileError, match="another model: its digest"):
        Swift(tuned, profile=learned)


def test_a_folder_that_is_not_there_is_said(learned, tmp_path):
    with pytest.raises(ProfileError, match="cannot write"):
        learned.save(tmp_path / "absent" / "x.json")


class TestAutomatic:
    @pytest.fixture(autouse=True)
    def folder(self, own_cache):
        return own_cache / "profiles"

    def test_one_object_goes_on_where_the_other_stopped(self, model, prompt, folder):
        respond(Swift(model, config=EAGER, profile="auto"), prompt)
        (file,) = folder.iterdir()
        kept = Profile.load(file)
        swift = Swift(model, config=EAGER, profile="auto")
        assert swift.profile.learned == kept.learned

    def test_unasked_nothing_is_written(self, model, prompt, folder):
        respond(Swift(model, config=EAGER), prompt)
        assert not folder.exists()

    def test_where_nothing_is_learned_nothing_is_written(self, model, prompt, folder):
        respond(Swift(model, config=SwiftConfig.plain(), profile="auto"), prompt)
        assert not folder.exists()

    def test_a_damaged_one_is_replaced(self, model, prompt, folder):
        profiles.automatic_path(model).parent.mkdir()
        profiles.automatic_path(model).write_text("{")
        with pytest.warns(UserWarning, match="starts anew"):
            swift = Swift(model, config=EAGER, profile="auto")
        respond(swift, prompt)
        assert Profile.load(profiles.automatic_path(model)).learned["kinds"]

    def test_no_response_is_lost_to_a_full_disk(self, model, prompt, monkeypatch):
        swift = Swift(model, config=EAGER, profile="auto")
        monkeypatch.setattr(profiles.os, "fsync", full_disk)
        with pytest.warns(UserWarning, match="No space left"):
            output = respond(swift, prompt)
        expected = model.generate(prompt(), do_sample=False, max_new_tokens=48, eos_token_id=None)
        assert torch.equal(output, expected)
        respond(swift, prompt)  # warns only once

    def test_nor_to_a_cache_that_is_a_file(self, model, prompt, folder):
        folder.write_text("in the way")
        with pytest.warns(UserWarning, match="cannot write in"):
            respond(Swift(model, config=EAGER, profile="auto"), prompt)


@pytest.mark.parametrize(
    "config",
    [SwiftConfig.plain(), SwiftConfig.paper(), SwiftConfig(layer_set=LayerSet.none(10))],
)
def test_where_nothing_is_learned_a_profile_is_refused(model, learned, config):
    with pytest.raises(ConfigError, match="no place"):
        Swift(model, config=config, profile=learned)
    with pytest.raises(ConfigError, match="nothing is learned"):
        _ = Swift(model, config=config).profile


def test_a_profile_of_another_type_is_refused(model):
    with pytest.raises(ConfigError, match="profile is a int"):
        Swift(model, profile=3)
