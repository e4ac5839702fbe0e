"""Runs in processes of their own, and one that nothing interrupts."""

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest
from support import killed_runs
from support.commands import run


@pytest.fixture(scope="session")
def processes():
    """Starts processes quickly: by a fork of one that has only imported everything."""
    context = multiprocessing.get_context("forkserver")
    slow = ("commands.training_run", "torchsummary", "sklearn.datasets", "sklearn.metrics")
    slow += ("albumentations", "torch._dynamo")
    context.set_forkserver_preload([killed_runs.__name__, *slow])
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context.Process


@pytest.fixture
def begin(processes):
    """`begin(directory, *flags)` -> a run in its own process, which ends with the test."""
    begun = []

    def run(directory: Path, *flags: object, **fault: object):
        directory.mkdir(exist_ok=True)
        words = tuple(str(flag) for flag in flags)
        begun.append(processes(target=killed_runs.live, args=(directory, words), kwargs=fault))
        begun[-1].start()
        return begun[-1]

    yield run
    for process in begun:
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Path:
    """The directory of a run that nothing interrupted."""
    directory = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(directory)
        assert run("main", *killed_runs.RUN) == 0
    return directory
