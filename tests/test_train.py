import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.small_runs import small_run, small_splits

from cifarnet.core.errors import RunError, UserError
from cifarnet.networks.cifarnet import CIFARNet
from cifarnet.networks.fast import use_plain_forms
from cifarnet.reporting.metrics import collect_logits, scores
from cifarnet.training.plan import learning_rate


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.1])
def test_an_epoch_is_plain_sgd_with_nesterov_momentum(max_grad_norm):
    """The recipe, written a second time: a plain loop with its own momentum and clipping."""
    recipe = {"dropout": 0.0, "lr": 0.05, "weight_decay": 5e-4, "momentum": 0.9, "batch_size": 5}
    run = small_run(small_splits(12, 4), max_grad_norm=max_grad_norm, **recipe)
    # In float64: rounding errors grow from step to step.
    for batches in run.data.train, run.data.held_out:
        batches.normalise = lambda pixels, normalise=batches.normalise: normalise(pixels).double()
    model = CIFARNet(2).double()
    model.load_state_dict(run.learner.network.double().state_dict())
    parameters = list(model.parameters())
    momenta = [torch.zeros_like(p) for p in parameters]
    loss_sum = correct = clipped = 0
    norms = []
    for step, (images, labels) in enumerate(run.data.train.epoch(1)):
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
        scale = min(1, max_grad_norm / (norm + 1e-6)) if max_grad_norm else 1  # as in torch
        clipped += bool(max_grad_norm) and norm > max_grad_norm
        norms.append(norm)
        rate = learning_rate(step, 6, 0, run.settings.training)
        with torch.no_grad():
            for p, g, m in zip(parameters, gradients, momenta, strict=True):
                g = g * scale + 5e-4 * p
                m.mul_(0.9).add_(g)
                p.sub_(rate * (g + 0.9 * m))
        loss_sum += loss.item() * len(labels)
        correct += int((logits.argmax(1) == labels).sum())

    run.fit_one_epoch()
    (row,) = run.learner.progress.history
    for ours, expected in zip(run.learner.network.parameters(), parameters, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
    assert row.train_loss == pytest.approx(loss_sum / 12, rel=1e-4)
    assert row.train_accuracy == pytest.approx(correct / 12)
    assert row.grad_norm == pytest.approx(sum(norms) / 3, rel=1e-3)
    assert row.clipped == pytest.approx(clipped / 3)


def test_dropout_draws_anew_in_each_epoch_and_run():
    def seeds(seed: int) -> list[int]:
        drawn = []
        small_run(seed=seed).fit(lambda row: drawn.append(torch.initial_seed()))
        return drawn

    assert seeds(1) == seeds(1)
    assert len({*seeds(1), *seeds(2)}) == 4


def test_a_run_reports_each_epoch_once():
    run = small_run()
    rows = run.fit()
    assert [row.epoch for row in rows] == [1, 2]
    assert rows == run.learner.progress.history
    assert rows[-1].lr == 1e-6
    assert all(row.images_per_second == pytest.approx(24 / row.train_seconds) for row in rows)
    assert all(row.train_seconds <= row.seconds for row in rows)
    assert rows[0].val_loss is None
    assert rows[0].test_accuracy is not None
    assert run.learner.progress.best.held_out_accuracy == max(row.test_accuracy for row in rows)
    assert run.fit() == []


def test_validation_images_keep_the_test_set_out_of_the_run():
    splits = replace(small_splits(val=6), test=None)  # any look would fail
    run = small_run(splits, val_fraction=0.2)
    rows = run.fit()
    assert all(row.test_loss is None and row.val_loss is not None for row in rows)
    assert run.learner.progress.best.held_out_accuracy == max(row.val_accuracy for row in rows)


@pytest.mark.parametrize("amp", [False, True])
def test_weights_that_are_no_longer_finite_end_the_run(amp):
    run, rows = small_run(lr=1e30, max_grad_norm=0.0, amp=amp, amp_dtype="bf16"), []
    words = r"are not finite: epoch 1, step \d of 3, learning rate"
    with pytest.raises(RunError, match=words) as caught:
        run.fit(rows.append)
    assert caught.value.exit_code == 1
    assert not rows
    assert (run.learner.progress.epoch, run.learner.progress.best_epoch) == (0, 0)


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
    whole, first = small_run(epochs=3, **settings), small_run(epochs=3, **settings)
    whole.fit()
    first.fit_one_epoch()
    second = small_run(epochs=3, **settings)
    second.learner.load(first.snapshot())
    torch.rand(7)  # what is drawn in between does not matter
    second.fit()
    ends = [run.snapshot() for run in (second, whole)]
    for part in ([end.model.weights for end in ends], [end.state.averaged for end in ends]):
        ours, expected = part
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], value) for name, value in expected.items())
    ours, expected = second.learner.progress, whole.learner.progress
    assert (ours.best_epoch, ours.best.test_loss) == (expected.best_epoch, expected.best.test_loss)
    assert ours.run_id == first.learner.progress.run_id != expected.run_id


@pytest.mark.parametrize(
    "change", [{"optimizer": "adamw"}, {"optimizer": "muon"}, {"decay_norms": False}]
)
def test_an_optimizer_may_start_anew(change):
    first = small_run()
    first.fit()
    second = small_run(epochs=3, **change)
    second.learner.load(first.snapshot(), optimizer_state=False)
    assert not second.learner.optimizer.state
    ours, expected = (run.learner.network.state_dict() for run in (second, first))
    assert all(torch.equal(value, ours[name]) for name, value in expected.items())
    second.fit()
    assert [row.epoch for row in second.learner.progress.history] == [1, 2, 3]


def test_the_averaged_weights_follow_their_closed_form():
    run, seen = small_run(ema_decay=0.7, epochs=1), []
    state = run.learner.network.state_dict
    run.fit(stop=lambda: seen.append({name: value.clone() for name, value in state().items()}))
    averaged = run.snapshot().trained("ema").weights
    assert averaged.keys() == seen[0].keys()
    for name, value in averaged.items():
        if value.is_floating_point() and "running" not in name:  # after each of the three steps
            expected = 0.7**2 * seen[0][name] + 0.7 * 0.3 * seen[1][name] + 0.3 * seen[2][name]
            torch.testing.assert_close(value, expected, msg=name)


@pytest.mark.parametrize("plain", [False, True])
def test_the_running_statistics_of_averaged_weights_are_those_of_clean_images(plain):
    run = small_run(ema_decay=0.7, epochs=1, augment="full", dropout=0.5)
    run.fit()
    model = CIFARNet(2)
    if plain:
        use_plain_forms(model)
    model.load_state_dict(run.snapshot().trained("ema").weights)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of one batch, in place of what was loaded
    model.train()(run.data.train.normalise(run.splits.train.images))
    expected = run.learner.networks()["ema"].buffers()
    for (name, ours), theirs in zip(model.named_buffers(), expected, strict=True):
        if ours.is_floating_point():
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_the_weights_that_evaluate_names_are_scored_and_kept_as_the_best():
    settings = {"ema_decay": 0.9, "epochs": 3, "lr": 0.5}
    raw, ema = (small_run(evaluate=which, **settings) for which in ("raw", "ema"))
    raw_rows, ema_rows = raw.fit(), ema.fit()
    for ours, other in zip(raw_rows, ema_rows, strict=True):
        assert ours.test_accuracy == ours.raw_accuracy == other.raw_accuracy
        assert other.test_accuracy == other.ema_accuracy == ours.ema_accuracy
    ours = scores(*collect_logits(ema.learner.networks()["ema"], ema.data.held_out, ema.runtime))
    assert ours.top1 == ema_rows[-1].test_accuracy
    assert ours.loss == ema_rows[-1].test_loss != raw_rows[-1].test_loss
    assert ema.learner.progress.best.held_out_accuracy == max(row.ema_accuracy for row in ema_rows)


def test_the_smoothed_loss_is_its_definition():
    settings = {"lr": 1e-12, "min_lr": 0.0, "batch_size": 24, "epochs": 1}
    run = small_run(label_smoothing=0.2, dropout=0.0, **settings)
    images, labels = next(run.data.train.epoch(1))
    log_p = run.learner.network.train()(images).log_softmax(1)
    expected = -(0.8 * log_p[torch.arange(24), labels] + 0.2 * log_p.mean(1)).mean().item()
    assert run.fit()[0].train_loss == pytest.approx(expected, rel=1e-4)


def test_image_sizes_change_what_the_network_trains_on_and_not_the_evaluation():
    run = small_run(image_sizes="16,24", epochs=2)
    shapes = {"train": set(), "eval": set()}
    run.learner.network.c1.register_forward_pre_hook(
        lambda module, args: shapes["train" if module.training else "eval"].add(
            tuple(args[0].shape[2:])
        )
    )
    run.fit()
    assert shapes == {"train": {(16, 16), (24, 24)}, "eval": {(32, 32)}}


def test_epochs_that_are_not_evaluated_say_so():
    run = small_run(epochs=5, eval_freq=2)
    measured = [row.epoch for row in run.fit() if row.test_accuracy is not None]
    assert measured == [2, 4, 5]
    assert run.learner.progress.best_epoch in measured


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"attention": "cbam", "compound_scale": 1.0},
        {"image_sizes": "8,12,16,20,24,32", "epochs": 6, "batch_size": 7},
    ],
    ids=str,
)
def test_a_compiled_step_trains_the_same(changed):
    torch._dynamo.reset()  # a process compiles one network
    settings = {"epochs": 1, "dropout": 0.0, **changed}
    plain, compiled = (small_run(compile=how, **settings) for how in (False, True))
    losses = [[row.train_loss for row in run.fit()] for run in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert compiled.snapshot().model.weights.keys() == plain.snapshot().model.weights.keys()


def test_without_a_compiler_the_flag_is_refused(monkeypatch):
    monkeypatch.setattr("cifarnet.training.compiling.shutil.which", lambda name: None)
    with pytest.raises(UserError, match="needs a compiler of C\\+\\+"):
        small_run(compile=True)


def test_this_runs_flags_win_over_the_snapshots():
    learner = small_run(weight_decay=0.25, momentum=0.5).learner
    learner.load(small_run(weight_decay=0.1).snapshot())
    group = learner.optimizer.param_groups[0]
    assert (group["weight_decay"], group["momentum"]) == (0.25, 0.5)


def test_a_state_of_another_network_or_optimizer_is_refused():
    snapshot, learner = small_run().snapshot(), small_run().learner
    model = snapshot.model
    weights = {name: value for name, value in model.weights.items() if "c3" not in name}
    with pytest.raises(UserError, match="do not fit this CIFARNet"):
        learner.load(replace(snapshot, model=replace(model, weights=weights)))
    state = replace(snapshot.state, optimizer={"param_groups": []})
    with pytest.raises(UserError, match="does not fit this run"):
        learner.load(replace(snapshot, state=state))


def test_scores_that_are_not_finite_end_the_run():
    """As in float16, where the evaluation can overflow although the weights are finite."""
    run = small_run()
    head = run.learner.network.head
    head.register_forward_hook(lambda head, _, logits: logits if head.training else logits * 1e39)
    with pytest.raises(RunError, match=r"not finite in float32; train with a lower --lr"):
        run.fit()
    assert run.learner.progress.history == []


def test_weights_spoilt_by_the_last_step_are_not_kept_unevaluated():
    run, rows = small_run(eval_freq=0, batch_size=24), []
    bias = run.learner.network.head.bias.data
    with pytest.raises(RunError, match="are not finite: epoch 1, step 1 of 1"):
        run.fit(rows.append, lambda: bias.fill_(torch.nan))
    assert not rows
