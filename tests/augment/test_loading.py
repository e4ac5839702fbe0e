import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.batches import batches_of, numbered_images

from cifarnet.augment.loading import EpochOrder
from cifarnet.core.errors import RunError, machine_errors


@given(images=st.integers(1, 200), share=st.integers(1, 12), world_size=st.integers(1, 9))
def test_shares_of_an_epoch_are_disjoint_complete_and_even(images, share, world_size):
    batch_size = share * world_size
    whole = list(EpochOrder(images, batch_size, 7))
    shares = [
        list(EpochOrder(images, batch_size, 7, rank, world_size)) for rank in range(world_size)
    ]
    for step, (epoch, first, indices) in enumerate(whole):
        parts = [shares[rank][step] for rank in range(world_size)]
        assert (np.concatenate([part for _, _, part in parts]) == indices).all()
        sizes = [len(part) for _, _, part in parts]
        assert max(sizes) - min(sizes) <= (len(indices) < batch_size)
        assert [place for _, place, _ in parts] == [
            first + sum(sizes[:rank]) for rank in range(world_size)
        ]
        assert {e for e, _, _ in parts} == {epoch}


def test_the_order_depends_on_seed_and_epoch():
    orders = set()
    for seed, epoch in ((1, 1), (1, 2), (2, 1), (2, 2)):
        order = EpochOrder(50, 50, seed)
        order.epoch = epoch
        ((_, _, indices),) = order
        orders.add(tuple(indices))
    assert len(orders) == 4


@pytest.mark.parametrize("place", ["worker", "main process"])
def test_a_process_that_cannot_start_a_thread_is_one_error(monkeypatch, capfd, place):
    """As under a limit of processes, `prlimit --nproc`. A worker needs a thread to send batches."""
    main, start = os.getpid(), threading.Thread.start

    def limited_start(thread):
        if (os.getpid() == main) == (place == "main process"):
            raise RuntimeError("can't start new thread")
        start(thread)

    batches = batches_of(numbered_images(20), num_workers=1)
    monkeypatch.setattr(threading.Thread, "start", limited_start)
    with pytest.raises(RunError, match="use --num_workers 0"), machine_errors():
        list(batches.epoch(1))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL], ids=["ignored", "default"])
def test_workers_ignore_sigterm_where_the_run_does(handler):
    """As under `trap "" TERM` in a script: a service manager signals the workers too."""
    signal.signal(signal.SIGTERM, handler)  # the fixture `signal_handlers` undoes it
    batches = batches_of(numbered_images(20), num_workers=1)
    first = len(list(batches.epoch(1)))
    (worker,) = batches.loader.loader._iterator._workers
    os.kill(worker.pid, signal.SIGTERM)
    if handler is signal.SIG_DFL:
        with pytest.raises(RunError, match="use --num_workers 0"), machine_errors():
            list(batches.epoch(2))
    else:
        assert len(list(batches.epoch(2))) == first


def test_workers_augment_although_opencv_had_threads():
    code = """
import cv2, numpy
cv2.setNumThreads(4)
cv2.GaussianBlur(numpy.zeros((2000, 2000, 3), numpy.uint8), (9, 9), 0)
from support.batches import batches_of, numbered_images
batches = batches_of(numbered_images(50), num_workers=1, hole_p=1.0)
print(len(list(batches.epoch(1))))
batches.close()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr
