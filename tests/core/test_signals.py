import os
import signal
import time

import pytest

from cifarnet.core.signals import Interrupted, Signals


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(0)  # handlers run between two instructions of Python


def test_a_signal_raises_at_once_with_its_exit_code():
    for signum, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
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
    former = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
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


def test_a_second_signal_ends_the_process_at_once_unless_it_is_patient(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    for patient, expected in ((True, []), (False, [130])):
        with pytest.raises(Interrupted), Signals(patient) as signals, signals.deferred():
            send(signal.SIGTERM)
            send(signal.SIGINT)
            assert codes == expected
