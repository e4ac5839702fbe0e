import itertools

import pytest
import torch
from support.small_runs import small_run

from cifarnet.settings import Settings
from cifarnet.settings.training import TrainingSettings
from cifarnet.training.plan import Plan, learning_rate

TOTAL, WARMUP = 1000, 100


def rate_at(
    step: int,
    total: int = TOTAL,
    warmup: int = 0,
    lr: float = 0.1,
    min_lr: float = 1e-6,
    schedule: str = "cosine",
) -> float:
    settings = TrainingSettings(lr=lr, min_lr=min_lr, schedule=schedule)
    return learning_rate(step, total, warmup, settings)


def test_the_cosine_starts_and_ends_exactly():
    for lr, low in ((0.1, 1e-6), (0.3, 0.0), (0.05, 0.05), (1e-3, 1e-9)):
        assert rate_at(0, TOTAL, 0, lr, low) == lr
        assert rate_at(TOTAL - 1, TOTAL, 0, lr, low) == low
        assert rate_at(500, 1001, 0, lr, low) == pytest.approx((lr + low) / 2)
    rates = [rate_at(step) for step in range(TOTAL)]
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_the_cosine_equals_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=TOTAL - 1, eta_min=1e-6)
    for step in range(TOTAL):
        assert rate_at(step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        scheduler.step()


def test_the_warm_up_is_linear_and_meets_the_cosine():
    rates = [rate_at(step, TOTAL, WARMUP) for step in range(TOTAL)]
    assert rates[:WARMUP] == pytest.approx([0.1 * (i + 1) / WARMUP for i in range(WARMUP)])
    assert rates[WARMUP] == 0.1
    assert rates[-1] == 1e-6
    plan = Plan(Settings.from_flags(epochs=5, warmup_epochs=2), 10)
    assert [plan.rate(step) for step in (0, 19, 20, 49)] == pytest.approx([0.005, 0.1, 0.1, 1e-6])


def test_the_shortest_runs():
    assert rate_at(0, 1) == 0.1
    assert [rate_at(i, 2) for i in range(2)] == [0.1, 1e-6]
    assert [rate_at(i, 2, 1) for i in range(2)] == [0.1, 0.1]


def test_the_linear_schedule_equals_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.005, TOTAL - WARMUP - 1)
    for step in range(TOTAL):
        rate = rate_at(step, TOTAL, WARMUP, 0.2, 1e-3, "linear")
        if step < WARMUP:
            assert rate == pytest.approx(0.2 * (step + 1) / WARMUP)
        else:
            assert rate == pytest.approx(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
    assert rate == 1e-3


def test_per_epoch_the_rate_is_that_of_torchs_scheduler_stepped_after_each_epoch():
    """As in the author's code: 250 epochs, T_max 250."""
    plan = Plan(Settings.from_flags(schedule_per="epoch"), 98)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=250, eta_min=1e-6)
    for epoch in range(1, 251):
        first = plan.first_step(epoch)
        rates = [plan.rate(first + step) for step in (0, 1, 50, 97)]
        assert rates == pytest.approx(scheduler.get_last_lr() * 4, rel=1e-6)
        optimizer.step()
        scheduler.step()


def test_per_step_the_rate_ends_at_the_lowest():
    plan = Plan(Settings.from_flags(epochs=3), 10)
    assert (plan.rate(0), plan.rate(29)) == (0.1, 1e-6)


def test_the_parts_of_a_run_by_image_size():
    plan = Plan(Settings.from_flags(epochs=7, image_sizes="16,24,32"), 10)
    assert [plan.image_size(epoch) for epoch in range(1, 8)] == [16, 16, 16, 24, 24, 32, 32]


@pytest.mark.parametrize(
    ("freq", "evaluated"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (0, [5]), (9, [5])]
)
def test_the_epochs_that_are_evaluated(freq, evaluated):
    plan = Plan(Settings.from_flags(epochs=5, eval_freq=freq), 10)
    assert [epoch for epoch in range(1, 6) if plan.evaluates(epoch)] == evaluated


def test_epochs_repeat_in_turn_where_the_teacher_is_asked_in_some_only():
    def plan(first=1, **flags):
        return Plan(Settings.from_flags(**{"epochs": 5, "teacher": "lite"} | flags), 1, first)

    epochs = range(1, 6)
    assert [plan(teacher_epochs=2).source_epoch(epoch) for epoch in epochs] == [1, 2, 1, 2, 1]
    for flags in ({}, {"teacher": None, "teacher_epochs": 2}):
        assert [plan(**flags).source_epoch(epoch) for epoch in epochs] == [*epochs]
    assert [plan(teacher_epochs=9).source_epoch(epoch) for epoch in epochs] == [*epochs]
    asked, alone = 1.25 * 32**2, 32**2  # the time left counts the teacher where it is asked
    costs = [plan(teacher_epochs=2).cost(epoch) for epoch in epochs]
    assert costs == [asked, asked, alone, alone, alone]
    resumed = [plan(4, teacher_epochs=1).cost(epoch) for epoch in (4, 5)]
    assert resumed == [asked, alone]
    assert plan(teacher_tta="flip").cost(1) == 1.5 * 32**2
    assert plan(teacher="lite,residual", teacher_tta="flip").cost(1) == 2 * 32**2


def test_each_step_has_the_rate_of_its_place_in_the_run():
    run, rates = small_run(epochs=3), []
    run.learner.optimizer.register_step_post_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    run.fit()
    settings = run.settings.training
    assert rates == pytest.approx([learning_rate(step, 9, 0, settings) for step in range(9)])
