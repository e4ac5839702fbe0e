import os
import signal
import sys
import time

import pytest

from cifarnet.core.signals import STOPS, Interrupted, Signals


def send(signum: int) -> None:
    signal.raise_signal(signum)  # to this thread: torch has others


def test_a_signal_raises_at_once_with_its_exit_code():
    for signum, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        former = signal.getsignal(signum)
        with pytest.raises(Interrupted) as caught, Signals():
            send(signum)
            pytest.fail("it went on")
        assert caught.value.exit_code == code
        assert str(caught.value) == signal.Signals(signum).name
        assert signal.getsignal(signum) is former


def test_signals_wait_while_deferred():
    with pytest.raises(Interrupted) as caught, Signals() as signals:
        with signals.deferred():
            signals.check()
            send(signal.SIGTERM)
            went_on = True
        pytest.fail("the end of the block checks")
    assert went_on
    assert caught.value.exit_code == 143


def test_a_patient_process_on_its_way_out_ignores_signals():
    former = {signum: signal.getsignal(signum) for signum in STOPS}
    try:
        with pytest.raises(Interrupted), Signals(patient=True), Signals(patient=True):
            send(signal.SIGTERM)
        assert {signal.getsignal(signum) for signum in former} == {signal.SIG_IGN}
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
    with Signals(patient=True):
        pass  # no signal came: the former handlers are put back
    assert all(signal.getsignal(signum) is handler for signum, handler in former.items())


def test_a_terminal_that_hangs_up_twice_ends_the_run_in_order(monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("ended at once"))
    with pytest.raises(Interrupted), Signals() as signals, signals.deferred():
        send(signal.SIGHUP)
        send(signal.SIGHUP)


@pytest.mark.parametrize(("patient", "expected"), [(True, []), (False, [130])])
def test_a_second_signal_ends_the_process_at_once_unless_it_is_patient(
    monkeypatch, patient, expected
):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with pytest.raises(Interrupted), Signals(patient) as signals, signals.deferred():
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert codes == expected


class Dropping:
    """Gets a signal while it is destroyed: Python drops what that raises."""

    def __del__(self):
        send(signal.SIGTERM)


def test_a_signal_inside_a_destructor_is_noticed_at_the_next_check_and_at_the_end(capsys):
    for checks in (True, False):
        passed = []
        with pytest.raises(Interrupted) as caught, Signals() as signals:
            Dropping()
            passed.append("the destructor")
            if checks:
                signals.check()
            passed.append("the end")
        assert caught.value.exit_code == 143
        assert passed == ["the destructor", "the end"][: 1 if checks else 2]
    assert capsys.readouterr().err == ""


def test_other_errors_inside_a_destructor_are_still_reported(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)

    class Faulty:
        def __del__(self):
            raise ValueError("a bug")

    with Signals():
        Faulty()
    assert [type(dropped.exc_value) for dropped in reported] == [ValueError]
    assert sys.unraisablehook == reported.append


def test_a_signal_raises_at_once_while_waiting():
    with pytest.raises(Interrupted), Signals() as signals, signals.deferred():
        with signals.waiting():
            send(signal.SIGTERM)
            pytest.fail("it went on")
    with pytest.raises(Interrupted), Signals() as signals, signals.deferred():
        with signals.waiting():
            pass
        send(signal.SIGTERM)  # deferred again
        with signals.waiting():
            pytest.fail("it went on")


def test_a_child_that_ends_with_a_signal_is_not_reported(monkeypatch):
    """Python complains of a pending SIGCHLD whose handler was taken away."""
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)

    former = signal.getsignal(signal.SIGCHLD)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        # Both are pending when Python looks: SIGTERM (15) is handled first, then SIGCHLD (17).
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
        with pytest.raises(Interrupted), Signals() as signals, signals.deferred():
            for signum in (signal.SIGTERM, signal.SIGCHLD):
                signal.raise_signal(signum)  # to this thread: torch has others
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGCHLD})
            time.sleep(0)
    finally:
        signal.signal(signal.SIGCHLD, former)
    assert reported == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(signum):
    signal.signal(signum, signal.SIG_IGN)  # the fixture `signal_handlers` undoes it
    with Signals() as signals:
        send(signum)
    assert signals.received == 0
    assert signal.getsignal(signum) is signal.SIG_IGN
