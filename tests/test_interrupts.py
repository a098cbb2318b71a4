"""SIGINT and SIGTERM: when they stop a block, and what they leave as it was."""

import signal
import threading

import pytest

from glimodern.train import interrupts as module
from glimodern.train.interrupts import Interrupts, Stopped

pytestmark = pytest.mark.usefixtures("default_signals")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_once(number):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, Interrupts() as interrupts:
        signal.raise_signal(number)
    assert stopped.value.exit_code == 128 + number and interrupts.received == number
    assert isinstance(stopped.value, KeyboardInterrupt) and signal.getsignal(number) == before


def test_what_is_held_ends_first_unless_the_user_insists(monkeypatch):
    """A launcher passes on what the terminal has sent already: within a second that is the same signal."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Interrupts() as interrupts:
        with interrupts.held():
            signal.raise_signal(signal.SIGINT)
            now[0] = 0.5
            signal.raise_signal(signal.SIGTERM)
        assert interrupts.received == signal.SIGINT
        now[0] = 3.0
        with pytest.raises(Stopped), interrupts.held():
            signal.raise_signal(signal.SIGINT)


def test_what_is_ignored_stays_ignored_and_threads_change_nothing():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and a comparison start a process
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
        assert interrupts.received == 0 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    failed = []

    def enter():
        try:
            with Interrupts():
                pass
        except ValueError as error:  # signal.signal refuses other threads
            failed.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not failed
