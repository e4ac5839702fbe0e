"""The batched augmentation as a user meets it: a run, its resumption, the preview, and the log's advice."""

import torch
from conftest import QUICK
from PIL import Image

from train import Trainer

BATCHED = (*QUICK, "--augment_engine", "batched")


def test_a_resumed_run_sees_the_images_of_an_uninterrupted_one(command):
    done = command("main", *BATCHED, "--snapshot_dir", "whole")
    assert (done.code, done.err) == (0, "")
    assert " 0 workers" in done.out
    assert command("main", *BATCHED, "--resume", "whole/snapshot_epoch_0001.pth").code == 0
    whole, resumed = (
        torch.load(f"{path}/last.pth")["model"] for path in ("whole", "snapshots_complete")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_preview_shows_the_engine_that_the_run_would_use(command):
    pixels = []
    for engine in ("albumentations", "batched"):
        assert (
            command(
                "main", *QUICK, "--augment_engine", engine, "--preview_augment", f"{engine}.png"
            ).code
            == 0
        )
        with Image.open(f"{engine}.png") as image:
            pixels.append(image.tobytes())
    assert pixels[0] != pixels[1]


def test_waiting_for_data_names_the_remedy_once(command, monkeypatch):
    row = Trainer._row
    monkeypatch.setattr(Trainer, "_row", lambda *args: row(*args) | {"data_wait": 0.25})
    assert (
        command("main", *QUICK).out.count(
            "25% of the epoch went by waiting for data: more --num_workers (now 0)"
        )
        == 1
    )
    assert "waiting for data" not in command("main", *BATCHED).out
    monkeypatch.setattr(Trainer, "_row", lambda *args: row(*args) | {"data_wait": 0.1})
    assert "waiting for data" not in command("main", *QUICK).out
