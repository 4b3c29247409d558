"""Signals only set a flag, in the process that installed them."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from marc_dist.training.signals import STOP_SIGNALS, StopFlag


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_sets_the_flag_and_the_old_handler_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopFlag().installed() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.name == number.name
    assert signal.getsignal(number) is before


def test_another_process_does_not_listen() -> None:
    stop = StopFlag()
    stop._pid += 1
    stop.ask(signal.SIGTERM)
    assert not stop


def test_outside_the_main_thread_it_does_nothing() -> None:
    seen = []

    def body() -> None:
        with StopFlag().installed() as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_signal_that_the_starter_blocked_gets_through() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        flag = StopFlag()
        with flag.installed():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert flag.name == "SIGUSR1"
        assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
