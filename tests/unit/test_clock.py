"""All that depends on time goes by the clock that a `Swift` is given, and by nothing else."""

import itertools

import pytest

from swift_sd import Swift, SwiftConfig


def ticks():
    """Every look at it is a millisecond after the one before."""
    return itertools.count(step=1e-3).__next__


@pytest.mark.parametrize("config", [SwiftConfig(), SwiftConfig(eager_search=True)])
def test_by_the_same_clock_the_same_is_done(model_of, prompt, answer, config):
    """Drafted, timed and learned: it would differ if anything looked at another clock."""

    def done():
        swift, steps = Swift(model_of(), config=config, clock=ticks()), []
        for seed in range(2):
            answer(swift, prompt(20, seed))
            steps.append((swift.trace.steps, swift.trace.seconds))
        return steps, swift.profile.learned

    assert done() == done()
