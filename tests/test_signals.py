"""Signals sent to this very process, which is in the main thread as the commands are."""

import os
import signal

import pytest

from twcli import signals


@pytest.fixture(autouse=True)
def installed():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signals.install()
    yield
    signals.install()  # forgets what the test sent
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_interrupts_at_once_and_gives_its_code(number, code):
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    assert signals.exit_code() == code


def test_inside_held_the_first_waits_until_the_end():
    steps = 0
    with pytest.raises(KeyboardInterrupt), signals.held() as pending:
        assert not pending()
        os.kill(os.getpid(), signal.SIGTERM)
        assert pending()
        steps += 1
    assert steps == 1


def test_the_second_does_not_wait():
    with signals.held() as pending:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        assert pending()
        signals.install()


def test_an_error_is_not_hidden_by_a_signal():
    with pytest.raises(ZeroDivisionError), signals.held():
        os.kill(os.getpid(), signal.SIGINT)
        raise ZeroDivisionError


def test_nothing_came():
    with signals.held() as pending:
        pass
    assert not pending()
