import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from cifarnet.core.settings import Settings
from cifarnet.reporting import recorders as recorder


@pytest.mark.parametrize(
    ("before", "epoch", "left"), [(0, 1, "0:02:00"), (0, 2, "0:00:16"), (1, 2, "0:00:20")]
)
def test_the_time_left_knows_that_larger_images_take_longer(monkeypatch, before, epoch, left):
    """In units of 16x16 pixels the epochs are worth 1, 4, 4, 4; ten seconds went by for the first 1 or 5, or for 4."""
    clock = iter((100.0, 110.0))
    monkeypatch.setattr(recorder.time, "perf_counter", lambda: next(clock))
    config = Settings(epochs=4, image_sizes="16,32,32,32")
    trainer = SimpleNamespace(config=config, splits=None, runtime=None, epoch=before, best_epoch=0)
    kept = recorder.Recorder(trainer, None, Path(), Path(), None)
    row = dict.fromkeys(
        ("lr", "train_loss", "train_accuracy", "seconds", "images_per_second", "data_wait"), 0.0
    )
    row |= dict.fromkeys(("val_loss", "test_loss", "ema_accuracy")) | {
        "grad_norm": 0,
        "clipped": 0,
        "skipped_steps": 0,
    }
    line = kept._epoch_line(row | {"epoch": epoch})
    assert re.search(r"left (.*)", line)[1] == left


def test_the_learning_rates_drawn_are_those_that_were():
    """Ten steps an epoch; two epochs are done, by flags that said the same or something else."""
    history = [{"epoch": 1, "lr": 0.4}, {"epoch": 2, "lr": 0.2}]
    trainer = SimpleNamespace(
        config=None, splits=None, runtime=None, epoch=2, history=history, batches=range(10)
    )
    for rate, drawn in (
        (lambda step: 0.6 - 0.02 * (step + 1), (0.58, 0.4, 0.3, 0.2, 0.18)),
        (lambda step: 0.7, (0.4, 0.4, 0.3, 0.2, 0.7)),
    ):
        trainer.rate = rate
        shown = recorder.Recorder(trainer, None, Path(), Path(), None)._rate_by_step()
        assert [shown(step) for step in (0, 9, 14, 19, 20)] == pytest.approx(drawn)
