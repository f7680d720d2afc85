"""What becomes of a run when a method breaks, or cannot run at all."""

import pytest

from swift_sd.bench.results import collect


@pytest.fixture
def log():
    return []


@pytest.mark.parametrize("may_fail", [True, False])
def test_an_alternative_that_breaks_in_the_warm_up_is_skipped_and_said_to_be(
    tmp_path, runner_in, settings_of, scripted_method, log, may_fail
):
    broken = scripted_method("m", log)
    broken.may_fail = may_fail
    broken.start = lambda self: 1 / 0
    settings = settings_of(methods=("hf", "m"))
    methods = {"hf": scripted_method("hf", log), "m": broken}
    runner, _ = runner_in(tmp_path, settings, methods=methods)
    if not may_fail:
        with pytest.raises(ZeroDivisionError):
            list(runner.run())
        return
    assert {record["method"] for record in runner.run()} == {"hf"}
    assert runner.missing == 0
    assert "ZeroDivisionError" in runner.skipped["m"]


def test_an_alternative_that_breaks_later_is_left_and_the_run_goes_on(
    tmp_path, runner_in, settings_of, scripted_method, log
):
    breaking = scripted_method("m", log)
    breaking.may_fail = True
    whole = breaking.start

    def start(self):
        answer = whole(self)

        def breaks(inputs, arguments):
            if "ef" in self.subject.tokenizer.decode(inputs["input_ids"][0]):
                raise IndexError("too long for it")
            return answer(inputs, arguments)

        return breaks

    breaking.start = start
    methods = {name: scripted_method(name, log) for name in ("hf", "n")} | {"m": breaking}
    settings = settings_of(methods=("m", "n"))
    runner, journal = runner_in(tmp_path, settings, methods=methods)
    made = [record["method"] for record in runner.run()]
    assert made.count("m") < made.count("n") == 4
    assert runner.missing == 0
    again, _ = runner_in(tmp_path, settings, methods=methods)
    assert again.missing == 0
    assert again.skipped == runner.skipped == {"m": "IndexError: too long for it"}
    results = collect(journal, settings, complete=True, skipped=again.skipped)
    assert results["summary"]["m"]["overall"]["questions"] == 2
    assert any("m stopped after 2 questions" in said for said in results["warnings"])


def test_a_method_that_the_model_does_not_support_is_skipped(
    tmp_path, runner_in, settings_of, scripted_method, log
):
    refusing = scripted_method("m", log)
    refusing.unavailable = lambda self: "it cannot"
    methods = {"hf": scripted_method("hf", log), "m": refusing}
    runner, _ = runner_in(tmp_path, settings_of(methods=("hf", "m")), methods=methods)
    assert runner.skipped == {"m": "it cannot"}
    assert {record["method"] for record in runner.run()} == {"hf"}
