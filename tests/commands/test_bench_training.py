"""Rates are the images that went through, divided by the time that they took."""

import itertools
from types import SimpleNamespace

import pytest

from commands import bench_plain, bench_training


def test_a_training_step_is_three_forward_passes_of_two_flops_a_multiply_add():
    assert bench_training.flops_per_image() == 3 * 2 * 100_204_288


def test_the_time_of_work_is_the_median_without_the_warm_up(monkeypatch):
    clock = iter([0, 100, 200, 203, 203, 204, 204, 206])  # two warm-ups; then 3, 1 and 2 seconds
    fake = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(bench_training, "time", fake)
    calls = []
    assert bench_training._seconds(lambda: calls.append(1), 2, 3) == 2
    assert len(calls) == 5


@pytest.mark.parametrize("changes", [{"attention": "se", "depth": 2.0}, {"plain": True}], ids=str)
def test_a_step_counts_the_images_of_its_batch(monkeypatch, changes):
    def seconds(work, warm_up, repeats):
        work()
        return 0.5

    monkeypatch.setattr(bench_training, "_seconds", seconds)
    assert bench_training.step("cpu", batch_size=4, **changes) == 8


def test_the_evaluation_counts_all_its_images(monkeypatch):
    monkeypatch.setattr(bench_training, "BATCH", 4)
    sizes = []

    def predict(model, batches, runtime):
        sizes.extend(len(images) for images, *_ in batches)

    monkeypatch.setattr(bench_training, "collect_logits", predict)
    monkeypatch.setattr(bench_training, "_seconds", lambda work, *counts: work() or 2.0)
    assert bench_training.evaluation("cpu", False) == 4
    assert sizes == [4] * 2


@pytest.mark.parametrize("engine", ["albumentations", "batched"])
def test_the_training_loop_leaves_out_its_first_epoch(monkeypatch, engine):
    """The loop itself is real; the rate is the median of the rows after the first."""
    fit, learners = bench_training.fit, []

    def watched(learner, objective, data, plan, recorders):
        assert (len(data.train), plan.epochs, plan.total_steps) == (2, 3, 6)
        fit(learner, objective, data, plan, recorders)
        learners.append(learner)

    monkeypatch.setattr(bench_training, "BATCH", 8)  # the images that are evaluated
    monkeypatch.setattr(bench_training, "fit", watched)
    rate = bench_training.training("cpu", False, engine, 2, batch_size=8, epochs=3)
    _, *later = [row.images_per_second for row in learners[0].progress.history]
    assert len(later) == 2
    assert rate == pytest.approx(sum(later) / 2)


def test_the_plain_loop_counts_a_batch_a_step_after_the_first(monkeypatch):
    monkeypatch.setattr(bench_plain, "BATCH", 4)
    times = itertools.accumulate([0, 9, 0, 1, 0, 2, 0, 3, 0])  # steps take 9, 1, 2 and 3 seconds
    clock = SimpleNamespace(perf_counter=lambda: float(next(times)))
    monkeypatch.setattr(bench_plain, "time", clock)
    assert bench_plain.plain_loop("cpu", 3) == 4 / 2
