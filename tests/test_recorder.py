import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import recorder
from config import TrainConfig


@pytest.mark.parametrize(("before", "epoch", "left"), [(0, 1, "0:02:00"), (0, 2, "0:00:16"), (1, 2, "0:00:20")])
def test_the_time_left_knows_that_larger_images_take_longer(monkeypatch, before, epoch, left):
    """In units of 16x16 pixels the epochs are worth 1, 4, 4, 4; ten seconds went by for the first 1 or 5, or for 4."""
    clock = iter((100.0, 110.0))
    monkeypatch.setattr(recorder.time, "perf_counter", lambda: next(clock))
    config = TrainConfig(epochs=4, image_sizes="16,32,32,32")
    trainer = SimpleNamespace(config=config, splits=None, runtime=None, epoch=before, best_epoch=0)
    kept = recorder.Recorder(trainer, None, Path(), Path(), None)
    row = dict.fromkeys(("lr", "train_loss", "train_accuracy", "seconds", "images_per_second", "data_wait"), 0.0)
    row |= dict.fromkeys(("val_loss", "test_loss", "ema_accuracy")) | {"grad_norm": 0, "clipped": 0, "skipped_steps": 0}
    line = kept._epoch_line(row | {"epoch": epoch})
    assert re.search(r"left (.*)", line)[1] == left
