"""The batched augmentation as a user meets it: a run, resuming, the preview, the log's advice."""

import pytest
import torch
from PIL import Image
from support.commands import QUICK

from train import Tally

BATCHED = (*QUICK, "--augment_engine", "batched")


def test_a_resumed_run_sees_the_images_of_an_uninterrupted_one(command):
    done = command("main", *BATCHED, "--snapshot_dir", "whole")
    assert (done.code, done.err) == (0, "")
    assert " 0 workers" in done.out
    parts = ("--snapshot_dir", "parts", "--resume", "whole/snapshot_epoch_0001.pth")
    assert command("main", *BATCHED, *parts).code == 0
    whole, resumed = (torch.load(f"{place}/last.pth")["weights"] for place in ("whole", "parts"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_preview_shows_the_engine_that_the_run_would_use(command):
    pixels = []
    for engine in ("albumentations", "batched"):
        preview = ("--augment_engine", engine, "--preview_augment", f"{engine}.png")
        assert command("main", *QUICK, *preview).code == 0
        with Image.open(f"{engine}.png") as image:
            pixels.append(image.tobytes())
    assert pixels[0] != pixels[1]


@pytest.fixture
def wait_for_data(monkeypatch):
    """`wait_for_data(share)` has each epoch wait for that share of its time."""
    stats = Tally.stats

    def wait(share):
        monkeypatch.setattr(Tally, "stats", lambda *args: stats(*args)._replace(data_wait=share))

    return wait


def test_waiting_for_data_names_the_remedy_once(command, wait_for_data):
    wait_for_data(0.25)
    advice = "25% of the training time was spent waiting for data: raise --num_workers"
    assert command("main", *QUICK).out.count(advice) == 1
    assert "waiting for data" not in command("main", *BATCHED).out
    wait_for_data(0.1)
    assert "waiting for data" not in command("main", *QUICK).out
