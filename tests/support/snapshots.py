"""Trained models, histories and snapshots for tests that train nothing."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cifarnet.checkpoints.history import Row
from cifarnet.checkpoints.snapshots import RunState, Snapshot
from cifarnet.checkpoints.trained import Origin, TrainedModel, fingerprint
from cifarnet.settings import Settings
from cifarnet.settings.network import NetworkSettings


def make_row(epoch: int = 1, **changes: object) -> Row:
    values = dict.fromkeys((field.name for field in dataclasses.fields(Row)), 0.5)
    values |= {"epoch": epoch, "val_loss": None, "val_accuracy": None}
    values |= {"data_wait": 0.0, "skipped_steps": 0}
    return Row(**values | changes)


def make_trained(
    weights: dict[str, Tensor] | None = None,
    settings: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    **changes: Any,
) -> TrainedModel:
    """A trained model; `settings` are flags of its run, `origin` and `changes` are fields."""
    weights = {"weight": torch.arange(3.0)} if weights is None else weights
    fields = {
        "dataset": "pictures",
        "epoch": 3,
        "weights": "raw",
        "selected_by": "last epoch; the test set was evaluated during the run",
        "accuracy": 0.5,
        "accuracy_from": "the run's history, epoch 3",
        "computed_on": "cpu in bfloat16",
        "settings": Settings.from_flags(**{"epochs": 10, "amp": True, **(settings or {})}).flags,
    }
    about = {
        "network": NetworkSettings(),
        "image_size": 32,
        "classes": ("a", "ü"),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.3, 0.2, 0.1),
        "origin": Origin(**fields | dict(origin or {})),
        "source": "some.pth",
    }
    sha256 = changes.pop("sha256", None) or fingerprint(weights)
    return TrainedModel(**about | changes, weights=weights, sha256=sha256)


def make_snapshot(
    epoch: int = 3, origin: Mapping[str, Any] | None = None, **changes: Any
) -> Snapshot:
    """A snapshot after `epoch`; `changes` are fields of its state, or those of `make_trained`."""
    state = {
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.ones(3)}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        "scheduler": {"step": 30, "total_steps": 100},
        "scaler": {},
        "averaged": {},
        "random_state": {"cpu": torch.get_rng_state(), "cuda": []},
        "run_id": "first",
        "history": [make_row(epoch)],
        "comparable_after": 0,
        "held_out_sha256": "0",
        "world_size": 1,
        "teacher_sha256": None,
    }
    state |= {name: changes.pop(name) for name in state.keys() & changes.keys()}
    model = make_trained(origin={"epoch": epoch, **(origin or {})}, **changes)
    return Snapshot(model, RunState(**state))
