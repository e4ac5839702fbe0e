from hypothesis import given
from hypothesis import strategies as st
from support.snapshots import make_row

from cifarnet.checkpoints.history import Progress

SHARES = st.none() | st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
MEASURED = st.lists(st.tuples(SHARES, SHARES), max_size=8)  # validation and test accuracy


def epoch_of_best(measured) -> int | None:
    """By the definition: the column that counts, its highest value, the first epoch that has it."""
    for column in zip(*measured, strict=True):
        if any(share is not None for share in column):
            return 1 + column.index(max(share for share in column if share is not None))
    return None


@given(MEASURED, st.integers(0, 8))
def test_the_best_is_the_first_comparable_epoch_of_the_highest_accuracy(measured, comparable_after):
    rows = [
        make_row(epoch, val_accuracy=val, test_accuracy=test)
        for epoch, (val, test) in enumerate(measured, 1)
    ]
    progress = Progress(history=rows, comparable_after=comparable_after)
    expected = epoch_of_best(measured[comparable_after:])
    assert progress.epoch == len(measured)
    assert progress.best_epoch == (expected + comparable_after if expected else 0)
    assert (progress.best is None) == (expected is None)


def test_each_run_has_an_id_of_its_own():
    assert Progress().run_id != Progress().run_id
