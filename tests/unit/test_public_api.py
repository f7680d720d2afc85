"""What users may import, and what importing costs."""

import pickle
import subprocess
import sys

import pytest

import swift_sd
from swift_sd import errors

NAMES = [
    "ConfigError",
    "LayerSet",
    "LayerSetError",
    "ModelNotFound",
    "Profile",
    "ProfileError",
    "PromptError",
    "Swift",
    "SwiftConfig",
    "SwiftError",
    "UnsupportedArgument",
    "UnsupportedModel",
]
ERRORS = [name for name in NAMES if isinstance(getattr(swift_sd, name), type(ValueError))]
ERRORS = [name for name in ERRORS if issubclass(getattr(swift_sd, name), Exception)]


def test_the_public_names_are_exactly_these():
    assert swift_sd.__all__ == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_can_be_imported(name):
    namespace = {}
    exec(f"from swift_sd import {name}", namespace)
    assert namespace[name].__name__ == name


def test_a_star_import_gives_them_all():
    namespace = {}
    exec("from swift_sd import *", namespace)
    assert set(NAMES) <= set(namespace)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Swiftt"):
        _ = swift_sd.Swiftt
    with pytest.raises(ImportError, match="Swiftt"):
        exec("from swift_sd import Swiftt")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import swift_sd", {"torch", "transformers", "numpy"}),
        ("from swift_sd import LayerSet, SwiftConfig, ConfigError", {"torch", "transformers"}),
    ],
)
def test_importing_does_not_wait_for_heavy_libraries(statement, absent):
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert absent.isdisjoint(done.stdout.split())
    assert done.stderr == ""


def test_all_errors_are_public_and_nothing_else_is_in_the_tree():
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert defined == set(ERRORS)


@pytest.mark.parametrize("name", ERRORS)
def test_one_clause_catches_every_error_and_all_but_the_base_are_value_errors(name):
    error = getattr(swift_sd, name)
    assert issubclass(error, swift_sd.SwiftError)
    assert issubclass(error, ValueError) == (error is not swift_sd.SwiftError)


def test_errors_do_not_catch_each_other():
    leaves = [getattr(swift_sd, name) for name in ERRORS if name != "SwiftError"]
    for one in leaves:
        assert [other for other in leaves if issubclass(one, other)] == [one]


@pytest.mark.parametrize("name", ERRORS)
def test_errors_survive_a_process_boundary(name):
    kind = getattr(swift_sd, name)
    error = kind("num_beams", "no") if name == "UnsupportedArgument" else kind("no")
    received = pickle.loads(pickle.dumps(error))
    assert (type(received), str(received)) == (kind, "no")
    assert vars(received) == vars(error)
