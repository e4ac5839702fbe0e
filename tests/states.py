"""States that tests of checkpoints share."""

import dataclasses

import torch

from cifarnet.checkpoints.state import Row, TrainState
from cifarnet.settings import Settings


def make_row(epoch: int = 1, **changes: object) -> Row:
    values = dict.fromkeys((field.name for field in dataclasses.fields(Row)), 0.5)
    values |= {"epoch": epoch, "val_loss": None, "val_accuracy": None}
    values |= {"data_wait": 0.0, "skipped_steps": 0}
    return Row(**values | changes)


def make_state(epoch: int = 3, **changes: object) -> TrainState:
    settings = Settings.from_flags(epochs=10, amp=True).flags
    fields = {
        "model": {"weight": torch.arange(3.0)},
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.ones(3)}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        "scheduler": {"step": 30, "total_steps": 100},
        "scaler": {},
        "averaged": {},
        "random_state": {"cpu": torch.get_rng_state(), "cuda": []},
        "run_id": "first",
        "epoch": epoch,
        "best_accuracy": 0.75,
        "best_epoch": min(2, epoch),
        "history": [make_row(epoch)],
        "config": settings
        | {"world_size": 1, "computed_on": "cpu in bfloat16", "teacher_sha256": None},
        "classes": ["a", "ü"],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.1, 0.2, 0.3],
        "dataset": "pictures",
    }
    return TrainState(**fields | changes)
