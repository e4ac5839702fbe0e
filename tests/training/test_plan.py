import pytest

from cifarnet.settings import Settings
from cifarnet.training.plan import Plan


def test_the_parts_of_a_run_by_image_size():
    plan = Plan(Settings.from_flags(epochs=7, image_sizes="16,24,32"), 10)
    assert [plan.image_size(epoch) for epoch in range(1, 8)] == [16, 16, 16, 24, 24, 32, 32]


@pytest.mark.parametrize(
    ("freq", "evaluated"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (0, [5]), (9, [5])]
)
def test_the_epochs_that_are_evaluated(freq, evaluated):
    plan = Plan(Settings.from_flags(epochs=5, eval_freq=freq), 10)
    assert [epoch for epoch in range(1, 6) if plan.evaluates(epoch)] == evaluated
