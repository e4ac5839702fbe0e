import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from config import RunError, TrainConfig, UserError
from data import ImageSet, Splits
from model import CIFARNet, build_model
from runtime import start
from train import Trainer, learning_rate

TOTAL, WARMUP = 1000, 100


def test_the_cosine_starts_and_ends_exactly():
    for lr, low in ((0.1, 1e-6), (0.3, 0.0), (0.05, 0.05), (1e-3, 1e-9)):
        assert learning_rate(0, TOTAL, 0, lr, low) == lr
        assert learning_rate(TOTAL - 1, TOTAL, 0, lr, low) == low
        assert learning_rate(500, 1001, 0, lr, low) == pytest.approx((lr + low) / 2)
    rates = [learning_rate(step, TOTAL, 0, 0.1, 1e-6) for step in range(TOTAL)]
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_the_cosine_equals_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=TOTAL - 1, eta_min=1e-6)
    for step in range(TOTAL):
        assert learning_rate(step, TOTAL, 0, 0.1, 1e-6) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        scheduler.step()


def test_the_warm_up_is_linear_and_meets_the_cosine():
    rates = [learning_rate(step, TOTAL, WARMUP, 0.1, 1e-6) for step in range(TOTAL)]
    assert rates[:WARMUP] == pytest.approx([0.1 * (i + 1) / WARMUP for i in range(WARMUP)])
    assert rates[WARMUP] == 0.1
    assert rates[-1] == 1e-6


def test_the_shortest_runs():
    assert learning_rate(0, 1, 0, 0.1, 1e-6) == 0.1
    assert [learning_rate(i, 2, 0, 0.1, 1e-6) for i in range(2)] == [0.1, 1e-6]
    assert [learning_rate(i, 2, 1, 0.1, 1e-6) for i in range(2)] == [0.1, 0.1]


def small_splits(train=24, test=10, val=None) -> Splits:
    generator = torch.Generator().manual_seed(0)

    def images(count):
        pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return ImageSet(pixels, torch.arange(count) % 2, ("a", "b"))

    return Splits("noise", images(train), images(val) if val else None, images(test), (0.5,) * 3, (0.3,) * 3)


def make_trainer(splits=None, **settings) -> Trainer:
    quick = {"device": "cpu", "num_workers": 0, "batch_size": 10, "epochs": 2, "augment": "none"}
    config = TrainConfig(**{**quick, **settings})
    runtime = start(config)
    return Trainer(build_model(config, 2), splits or small_splits(), config, runtime)


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.1])
def test_an_epoch_is_plain_sgd_with_nesterov_momentum(max_grad_norm):
    """The recipe, written down a second time: a plain loop with its own momentum, decay and clipping."""
    trainer = make_trainer(dropout=0.0, max_grad_norm=max_grad_norm, lr=0.05, weight_decay=5e-4, momentum=0.9)
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
    splits = Splits(splits.name, splits.train, splits.val, None, splits.mean, splits.std)  # any look would fail
    trainer, rows = make_trainer(splits), []
    trainer.fit(rows.append)
    assert all(row["test_loss"] is None and row["val_loss"] is not None for row in rows)
    assert trainer.best_accuracy == max(row["val_accuracy"] for row in rows)


@pytest.mark.parametrize("amp", [False, True])
def test_weights_that_are_no_longer_finite_end_the_run(amp):
    trainer, rows = make_trainer(lr=1e30, max_grad_norm=0.0, amp=amp), []
    with pytest.raises(RunError, match=r"no longer finite: epoch 1, step \d of 3, learning rate") as caught:
        trainer.fit(rows.append)
    assert caught.value.exit_code == 1
    assert not rows
    assert (trainer.epoch, trainer.best_epoch) == (0, 0)


def test_going_on_from_a_state_equals_not_stopping():
    whole, first = make_trainer(epochs=3, augment="full"), make_trainer(epochs=3, augment="full")
    whole.fit(lambda row: None)

    def stop(row):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        first.fit(stop)
    second = make_trainer(epochs=3, augment="full", seed=42)
    second.load_state(first.state())
    torch.rand(7)  # what is drawn in between does not matter
    second.fit(lambda row: None)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


@pytest.mark.slow
def test_a_compiled_step_trains_the_same():
    plain, compiled = make_trainer(epochs=1, dropout=0.0), make_trainer(epochs=1, dropout=0.0, compile=True)
    for trainer in (plain, compiled):
        trainer.fit(lambda row: None)
    assert compiled.history[0]["train_loss"] == pytest.approx(plain.history[0]["train_loss"], rel=1e-3)
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
        make_trainer().load_state(type(state)(**{**state.__dict__, "optimizer": {"param_groups": []}}))
