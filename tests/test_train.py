import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from cifarnet.checkpoints.state import evaluated_weights
from cifarnet.core.device import start
from cifarnet.core.errors import RunError, UserError
from cifarnet.core.settings import Settings
from cifarnet.images.imageset import ImageSet, Splits
from cifarnet.networks.fast import use_plain_forms
from cifarnet.reporting.metrics import predict, scores
from cifarnet.training.schedule import learning_rate
from model import CIFARNet, build_model
from train import LATER_COLUMNS, Trainer


def small_splits(train=24, test=10, val=None) -> Splits:
    generator = torch.Generator().manual_seed(0)

    def images(count):
        pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return ImageSet(pixels, torch.arange(count) % 2, ("a", "b"))

    return Splits(
        "noise", images(train), images(val) if val else None, images(test), (0.5,) * 3, (0.3,) * 3
    )


def make_trainer(splits=None, **settings) -> Trainer:
    quick = {"device": "cpu", "num_workers": 0, "batch_size": 10, "epochs": 2, "augment": "none"}
    config = Settings(**{**quick, **settings})
    runtime = start(config)
    return Trainer(build_model(config, 2), splits or small_splits(), config, runtime)


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.1])
def test_an_epoch_is_plain_sgd_with_nesterov_momentum(max_grad_norm):
    """The recipe, written down a second time: a plain loop with its own momentum, decay and clipping."""
    trainer = make_trainer(
        dropout=0.0, max_grad_norm=max_grad_norm, lr=0.05, weight_decay=5e-4, momentum=0.9
    )
    model = CIFARNet(2, dropout=0.0)
    model.load_state_dict(trainer.model.state_dict())
    parameters = list(model.parameters())
    momenta = [torch.zeros_like(p) for p in parameters]
    loss_sum = correct = clipped = 0
    norms = []
    for step, (images, labels) in enumerate(trainer.batches.epoch(1)):
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
        scale = min(1, max_grad_norm / norm) if max_grad_norm else 1
        clipped += bool(max_grad_norm) and norm > max_grad_norm
        norms.append(norm)
        rate = learning_rate(step, 6, 0, 0.05, 1e-6)
        with torch.no_grad():
            for p, g, m in zip(parameters, gradients, momenta, strict=True):
                g = g * scale + 5e-4 * p
                m.mul_(0.9).add_(g)
                p.sub_(rate * (g + 0.9 * m))
        loss_sum += loss.item() * len(labels)
        correct += int((logits.argmax(1) == labels).sum())

    rows = []

    def stop(row):
        rows.append(row)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        trainer.fit(stop)
    for ours, expected in zip(trainer.model.parameters(), parameters, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)
    assert rows[0]["train_loss"] == pytest.approx(loss_sum / 24, rel=1e-4)
    assert rows[0]["train_accuracy"] == pytest.approx(correct / 24)
    assert rows[0]["grad_norm"] == pytest.approx(sum(norms) / 3, rel=1e-3)
    assert rows[0]["clipped"] == pytest.approx(clipped / 3)


def test_a_run_reports_each_epoch_once():
    trainer, rows = make_trainer(), []
    trainer.fit(rows.append)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows == trainer.history
    assert rows[-1]["lr"] == 1e-6
    assert rows[0]["val_loss"] is None
    assert rows[0]["test_accuracy"] is not None
    assert trainer.best_accuracy == max(row["test_accuracy"] for row in rows)
    trainer.fit(rows.append)
    assert len(rows) == 2


def test_validation_images_keep_the_test_set_out_of_the_run():
    splits = small_splits(val=6)
    splits = Splits(
        splits.name, splits.train, splits.val, None, splits.mean, splits.std
    )  # any look would fail
    trainer, rows = make_trainer(splits), []
    trainer.fit(rows.append)
    assert all(row["test_loss"] is None and row["val_loss"] is not None for row in rows)
    assert trainer.best_accuracy == max(row["val_accuracy"] for row in rows)


@pytest.mark.parametrize("amp", [False, True])
def test_weights_that_are_no_longer_finite_end_the_run(amp):
    trainer, rows = make_trainer(lr=1e30, max_grad_norm=0.0, amp=amp), []
    with pytest.raises(
        RunError, match=r"no longer finite: epoch 1, step \d of 3, learning rate"
    ) as caught:
        trainer.fit(rows.append)
    assert caught.value.exit_code == 1
    assert not rows
    assert (trainer.epoch, trainer.best_epoch) == (0, 0)


TECHNIQUES = {
    "published": {"augment": "full"},
    "muon": {
        "optimizer": "muon",
        "ema_decay": 0.9,
        "evaluate": "ema",
        "image_sizes": "16,32",
        "schedule": "linear",
    },
    "adamw": {"optimizer": "adamw", "decay_norms": False, "label_smoothing": 0.1, "eval_freq": 2},
}


@pytest.mark.parametrize("settings", TECHNIQUES.values(), ids=TECHNIQUES.keys())
def test_going_on_from_a_state_equals_not_stopping(settings):
    whole, first = make_trainer(epochs=3, **settings), make_trainer(epochs=3, **settings)
    whole.fit(lambda row: None)

    def stop(row):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        first.fit(stop)
    second = make_trainer(epochs=3, **settings)
    second.load_state(first.state())
    torch.rand(7)  # what is drawn in between does not matter
    second.fit(lambda row: None)
    for kept in ("model", "averaged"):
        ours, expected = getattr(second.state(), kept), getattr(whole.state(), kept)
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], value) for name, value in expected.items())
    assert (second.best_accuracy, second.best_epoch) == (whole.best_accuracy, whole.best_epoch)


@pytest.mark.parametrize(
    "change", [{"limit_test": 9}, {"val_fraction": 0.5}, {"skip_bad_images": True}, {}], ids=str
)
def test_the_best_by_other_images_is_forgotten(change):
    first = make_trainer()
    first.fit(lambda row: None)
    second = make_trainer(**change)
    second.load_state(first.state())
    assert (second.best_epoch == first.best_epoch > 0) == (not change)


def test_another_seed_holds_back_the_same_images_and_the_best_by_them_stays():
    first = make_trainer(val_fraction=0.5)
    first.fit(lambda row: None)
    second = make_trainer(val_fraction=0.5, seed=7)
    second.load_state(first.state())
    assert second.best_epoch == first.best_epoch > 0


def test_adamw_takes_its_counts_of_steps_over_as_its_own_kind_of_step_wants_them():
    """Which the snapshot's, of another device or precision, may not: torch converts them by the groups it is given."""
    first = make_trainer(optimizer="adamw")
    first.fit(lambda row: None)
    state = first.state()
    for group in state.optimizer["param_groups"]:
        group["fused"] = False
    for kept in state.optimizer["state"].values():
        kept["step"] = kept["step"].double()
    second = make_trainer(optimizer="adamw")
    second.load_state(state)
    assert all(group["fused"] for group in second.optimizer.param_groups)
    assert {kept["step"].dtype for kept in second.optimizer.state.values()} == {torch.float32}


@pytest.mark.parametrize(
    "change", [{"optimizer": "adamw"}, {"optimizer": "muon"}, {"decay_norms": False}]
)
def test_an_optimizer_of_other_settings_starts_anew(change):
    first = make_trainer()
    first.fit(lambda row: None)
    second = make_trainer(epochs=3, **change)
    second.load_state(first.state())
    assert not second.optimizer.state
    assert all(
        torch.equal(value, second.model.state_dict()[name])
        for name, value in first.model.state_dict().items()
    )
    second.fit(lambda row: None)
    assert [row["epoch"] for row in second.history] == [1, 2, 3]


def test_the_averaged_weights_follow_their_closed_form():
    trainer, seen = make_trainer(ema_decay=0.7, epochs=1), []
    trainer.fit(
        lambda row: None,
        lambda: seen.append({k: v.clone() for k, v in trainer.model.state_dict().items()}),
    )
    seen = seen[:3]  # after each of the three steps
    averaged = evaluated_weights(trainer.state(), "ema")
    assert averaged.keys() == seen[0].keys()
    for name, value in averaged.items():
        if value.is_floating_point() and "running" not in name:
            expected = 0.7**2 * seen[0][name] + 0.7 * 0.3 * seen[1][name] + 0.3 * seen[2][name]
            torch.testing.assert_close(value, expected, msg=name)


@pytest.mark.parametrize("plain", [False, True])
def test_the_running_statistics_of_averaged_weights_are_those_of_clean_images(plain):
    trainer = make_trainer(ema_decay=0.7, epochs=1, augment="full", dropout=0.5)
    trainer.fit(lambda row: None)
    model = CIFARNet(2, dropout=0.0)
    if plain:
        use_plain_forms(model)
    model.load_state_dict(evaluated_weights(trainer.state(), "ema"))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of one batch, in place of what was loaded
    model.train()(trainer.batches.normalise(trainer.splits.train.images))
    for (name, ours), expected in zip(
        model.named_buffers(), trainer.averaged.module.buffers(), strict=True
    ):
        if ours.is_floating_point():
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_the_weights_that_evaluate_names_are_scored_and_kept_as_the_best():
    settings = {"ema_decay": 0.9, "epochs": 3, "lr": 0.5}
    raw, ema = (make_trainer(evaluate=which, **settings) for which in ("raw", "ema"))
    for trainer in (raw, ema):
        trainer.fit(lambda row: None)
    for ours, other in zip(raw.history, ema.history, strict=True):
        assert ours["test_accuracy"] == ours["raw_accuracy"] == other["raw_accuracy"]
        assert other["test_accuracy"] == other["ema_accuracy"] == ours["ema_accuracy"]
    found = scores(*predict(ema.averaged.module, ema.held_out, ema.runtime))
    assert found.top1 == ema.history[-1]["test_accuracy"]
    assert found.loss == ema.history[-1]["test_loss"] != raw.history[-1]["test_loss"]
    assert ema.best_accuracy == max(row["ema_accuracy"] for row in ema.history)


def test_the_smoothed_loss_is_its_definition():
    trainer = make_trainer(
        label_smoothing=0.2, dropout=0.0, lr=1e-12, min_lr=0.0, batch_size=24, epochs=1
    )
    images, labels = next(trainer.batches.epoch(1))
    log_p = trainer.model.train()(images).log_softmax(1)
    expected = -(0.8 * log_p[torch.arange(24), labels] + 0.2 * log_p.mean(1)).mean().item()
    trainer.fit(lambda row: None)
    assert trainer.history[0]["train_loss"] == pytest.approx(expected, rel=1e-4)


def test_image_sizes_change_what_the_network_trains_on_and_not_the_evaluation():
    trainer = make_trainer(image_sizes="16,24", epochs=2)
    shapes = {"train": set(), "eval": set()}
    trainer.model.c1.register_forward_pre_hook(
        lambda module, args: shapes["train" if module.training else "eval"].add(
            tuple(args[0].shape[2:])
        )
    )
    trainer.fit(lambda row: None)
    assert shapes == {"train": {(16, 16), (24, 24)}, "eval": {(32, 32)}}


def test_epochs_that_are_not_evaluated_say_so():
    trainer = make_trainer(epochs=5, eval_freq=2)
    trainer.fit(lambda row: None)
    assert [row["epoch"] for row in trainer.history if row["test_accuracy"] is not None] == [
        2,
        4,
        5,
    ]
    assert trainer.best_epoch in (2, 4, 5)


@pytest.mark.slow
def test_a_compiled_step_trains_the_same():
    plain, compiled = (
        make_trainer(epochs=1, dropout=0.0),
        make_trainer(epochs=1, dropout=0.0, compile=True),
    )
    for trainer in (plain, compiled):
        trainer.fit(lambda row: None)
    assert compiled.history[0]["train_loss"] == pytest.approx(
        plain.history[0]["train_loss"], rel=1e-3
    )
    assert compiled.state().model.keys() == plain.state().model.keys()


def test_without_a_compiler_the_flag_is_refused(monkeypatch):
    monkeypatch.setattr("train.shutil.which", lambda name: None)
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        make_trainer(compile=True)


def test_this_runs_flags_win_over_the_snapshots():
    trainer = make_trainer(weight_decay=0.25, momentum=0.5)
    trainer.load_state(make_trainer(weight_decay=0.1).state())
    group = trainer.optimizer.param_groups[0]
    assert (group["weight_decay"], group["momentum"]) == (0.25, 0.5)


def test_a_state_of_other_classes_or_another_network_is_refused():
    state = make_trainer().state()
    with pytest.raises(UserError, match="tells 3 classes apart"):
        make_trainer().load_state(type(state)(**{**state.__dict__, "classes": ["x", "y", "z"]}))
    weights = {name: value for name, value in state.model.items() if "c3" not in name}
    with pytest.raises(UserError, match="another network"):
        make_trainer().load_state(type(state)(**{**state.__dict__, "model": weights}))
    with pytest.raises(UserError, match="optimizer"):
        make_trainer().load_state(
            type(state)(**{**state.__dict__, "optimizer": {"param_groups": []}})
        )


def test_a_history_of_an_earlier_version_is_taken_over_with_blanks():
    trainer = make_trainer(epochs=2, ema_decay=0.5)
    state = make_trainer(epochs=1, ema_decay=0.5)
    state.fit(lambda row: None)
    kept = state.state()
    for name in LATER_COLUMNS:
        del kept.history[0][name]
    trainer.load_state(kept)
    trainer.fit(lambda row: None)
    assert trainer.history[0].keys() == trainer.history[1].keys()
    assert all(
        trainer.history[0][name] is None and trainer.history[1][name] is not None
        for name in LATER_COLUMNS
    )


def test_the_best_of_other_weights_is_not_carried_over():
    first = make_trainer(ema_decay=0.5, epochs=1)
    first.fit(lambda row: None)
    for which, best_epoch in (("raw", 1), ("ema", 0)):
        second = make_trainer(ema_decay=0.5, epochs=2, evaluate=which)
        second.load_state(first.state())
        assert second.best_epoch == best_epoch


def test_weights_spoilt_by_the_last_step_are_not_kept_unevaluated():
    trainer, rows = make_trainer(eval_freq=0, batch_size=24), []
    with pytest.raises(RunError, match="no longer finite: epoch 1, step 1 of 1"):
        trainer.fit(rows.append, lambda: trainer.model.head.bias.data.fill_(torch.nan))
    assert not rows


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_an_overflow_in_the_first_fp16_step_leaves_no_trace(optimizer):
    config = Settings(device="cpu", num_workers=0, batch_size=10, optimizer=optimizer)
    runtime = replace(start(config), amp_dtype=torch.float16)
    trainer = Trainer(build_model(config, 2), small_splits(), config, runtime)
    for gradient in (torch.inf, 0.1):
        for p in trainer.model.parameters():
            p.grad = torch.full_like(p, gradient)
        trainer.scaler.scale(torch.ones(()))  # sets the scaler up
        trainer.scaler.unscale_(trainer.optimizer)
        trainer.scaler.step(trainer.optimizer)
        trainer.scaler.update()
        assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert all(
        state["momentum_buffer"].isfinite().all() for state in trainer.optimizer.state.values()
    )
