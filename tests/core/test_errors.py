import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cifarnet.core.errors import RunError, UserError, machine_errors, printable


@given(st.text())
def test_messages_are_one_printable_line_without_loss(text):
    shown = printable(text)
    assert shown.isprintable()
    assert str(UserError(text)) == shown
    assert printable(shown) == shown
    assert printable(text, kept=text) == text


def test_cublas_out_of_memory_is_one_line():
    text = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    with pytest.raises(RunError, match="out of memory; lower --batch_size"), machine_errors():
        raise RuntimeError(text)


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid(s) 12, 13) exited unexpectedly",
        "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory.",
    ],
)
def test_a_worker_that_died_is_one_line(text):
    with pytest.raises(RunError, match=r"use --num_workers 0 or .* batched"), machine_errors():
        raise RuntimeError(text)


def test_out_of_memory_is_one_line():
    def on_a_device():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    for fill in (lambda: torch.empty(2**50), lambda: np.empty(2**50), on_a_device):
        with pytest.raises(RunError, match=r"^out of memory; lower --batch"), machine_errors():
            fill()
    with pytest.raises(RuntimeError, match="shape"), machine_errors():
        torch.zeros(3).view(2)


@pytest.mark.parametrize(
    "problem",
    [
        RuntimeError("can't start new thread"),  # of Python
        RuntimeError("env.cc:327 PosixThread pthread_create failed, error code: 11"),  # of ONNX
        BlockingIOError(11, "Resource temporarily unavailable"),  # of a process
    ],
    ids=str,
)
def test_a_limit_of_processes_is_one_line(problem):
    with pytest.raises(RunError, match=r"no process or thread .*ulimit -u"), machine_errors():
        raise problem


def test_a_limit_of_address_space_is_one_line():
    """Clusters limit it on login nodes."""
    with pytest.raises(RunError, match=r"address space; .*ulimit -v"), machine_errors():
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")
    with pytest.raises(ImportError, match="libx"), machine_errors():
        raise ImportError("libx.so: no such file")
