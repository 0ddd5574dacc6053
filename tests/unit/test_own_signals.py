"""Each test begins with the signals that the process of the tests was started with."""

import signal

import pytest

from selfsup.signals import STOP_SIGNALS, ignore_stop_signals


@pytest.fixture(scope="module", autouse=True)
def an_attempt_that_has_ended():
    ignore_stop_signals()


@pytest.mark.parametrize("turn", [1, 2])
def test_signals_that_a_modules_fixture_has_left_ignored_are_not_ignored_in_its_tests(turn):
    assert not any(signal.getsignal(number) is signal.SIG_IGN for number in STOP_SIGNALS)
    ignore_stop_signals()
