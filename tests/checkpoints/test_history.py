import itertools

from hypothesis import given
from hypothesis import strategies as st
from support.snapshots import make_row

from cifarnet.checkpoints.history import Progress, best_row

SHARES = st.none() | st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
MEASURED = st.lists(st.tuples(SHARES, SHARES), max_size=8)  # validation and test accuracy


def rows_of(measured):
    return [
        make_row(epoch, val_accuracy=val, test_accuracy=test)
        for epoch, (val, test) in enumerate(measured, 1)
    ]


def epoch_of_best(measured) -> int | None:
    """By the definition: the column that counts, its highest value, the first epoch that has it."""
    for column in zip(*measured, strict=True):
        if any(share is not None for share in column):
            return 1 + column.index(max(share for share in column if share is not None))
    return None


@given(MEASURED)
def test_the_best_row_is_the_first_of_the_highest_held_out_accuracy(measured):
    best = best_row(rows_of(measured))
    assert (best.epoch if best else None) == epoch_of_best(measured)


@given(MEASURED, st.integers(0, 8))
def test_only_comparable_epochs_can_be_the_best(measured, comparable_after):
    progress = Progress(history=rows_of(measured), comparable_after=comparable_after)
    expected = epoch_of_best(measured[comparable_after:])
    assert progress.epoch == len(measured)
    assert progress.best_epoch == (expected + comparable_after if expected else 0)
    assert (progress.best is None) == (expected is None)


def test_the_best_epoch_follows_the_history():
    progress = Progress()
    assert (progress.epoch, progress.best_epoch, progress.best) == (0, 0, None)
    best = []
    for row in rows_of(zip(itertools.repeat(None), (0.0, None, 0.5, 0.5, 0.4), strict=False)):
        progress.history.append(row)
        best.append(progress.best_epoch)
    assert best == [1, 1, 3, 3, 3]


def test_each_run_has_an_id_of_its_own():
    assert Progress().run_id != Progress().run_id
