import dataclasses
import io
import os
import re
import signal
import sys
import time

import numpy as np
import pytest
import torch

from cifarnet.core import device as runtime
from cifarnet.core.commandline import run_command
from cifarnet.core.device import available_cores, start
from cifarnet.core.errors import RunError, UserError
from cifarnet.core.seeds import derived_seed
from cifarnet.core.settings import Settings
from cifarnet.core.signals import Interrupted, Signals


def test_seeds_depend_on_every_part_and_on_their_number():
    parts = [(1,), (1, 0), (1, 0, 0), (0, 1), (1, 1), (42, 1, 2), (42, 2, 1)]
    seeds = [derived_seed(*each) for each in parts]
    assert len(set(seeds)) == len(parts)
    assert seeds == [derived_seed(*each) for each in parts]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_seed_decides_the_initial_draws():
    draws = []
    for seed in (1, 1, 2):
        start(Settings(device="cpu", seed=seed))
        draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_precision():
    assert start(Settings(device="cpu")).amp_dtype is None
    assert start(Settings(device="cpu", amp=True)).amp_dtype is torch.bfloat16
    with pytest.raises(UserError, match="fp16 needs CUDA"):
        start(Settings(device="cpu", amp=True, amp_dtype="fp16"))


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_device_that_only_emulates_bf16_gets_fp16(monkeypatch, native, dtype):
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: native or including_emulation,
    )
    assert runtime._pick_amp_dtype(Settings(amp=True), torch.device("cuda")) is dtype


def test_what_is_computed_with_is_said():
    here = start(Settings(device="cpu"))
    for device, dtype, words in (
        ("cpu", None, "cpu in float32"),
        ("cuda:1", None, "cuda in float32, products in TF32"),
        ("cuda:0", torch.bfloat16, "cuda in bfloat16"),
    ):
        assert (
            dataclasses.replace(here, device=torch.device(device), amp_dtype=dtype).computed_on
            == words
        )


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"cuda: there is no such device here; usable: .*cpu"):
        start(Settings(device="cuda"))


def test_cores_respect_affinity_and_quota(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for quota, cores in (
        ("max 100000", 8),
        ("250000 100000", 2),
        ("10000 100000", 1),
        ("nonsense", 8),
    ):
        (tmp_path / "cpu.max").write_text(quota)
        monkeypatch.setattr(runtime, "CPU_QUOTA", tmp_path / "cpu.max")
        assert available_cores() == cores


def test_signals_wait_while_deferred():
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught, Signals() as signals:
        with signals.deferred():
            signals.check()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)
            went_on = True
        pytest.fail("the end of the block checks")
    assert went_on
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is former


def test_a_patient_process_on_its_way_out_ignores_signals():
    former = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(Interrupted), Signals(patient=True), Signals(patient=True):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)
        assert {signal.getsignal(signum) for signum in former} == {signal.SIG_IGN}
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
    with Signals(patient=True):
        pass  # none came: what was there before is put back
    assert all(signal.getsignal(signum) is handler for signum, handler in former.items())


def test_a_terminal_of_few_characters_is_no_bug(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run_command(lambda: print("ünï")) == 0
    terminal.flush()
    assert terminal.buffer.getvalue() == b"\\xfcn\\xef\n"


def test_exit_codes(capsys):
    def fail(problem):
        raise problem

    assert run_command(lambda: None) == 0
    assert run_command(lambda: fail(UserError("no"))) == 2
    assert run_command(lambda: fail(RunError("no"))) == 1
    assert run_command(lambda: fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "error: no\n" * 2
    with pytest.raises(ZeroDivisionError):  # a bug stays a traceback
        run_command(lambda: 1 / 0)


def test_want_of_memory_is_one_line(capsys):
    def on_a_device():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    for wants in (lambda: torch.empty(2**50), lambda: np.empty(2**50), on_a_device):
        assert run_command(wants) == 1
        assert re.fullmatch(
            r"error: out of memory; a lower --batch_size .*\n", capsys.readouterr().err
        )
    with pytest.raises(RuntimeError, match="shape"):
        run_command(lambda: torch.zeros(3).view(2))
