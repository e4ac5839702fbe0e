import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.random_models import random_model
from support.small_runs import small_splits
from support.snapshots import make_row, make_snapshot

from cifarnet.checkpoints.paths import BEST, LAST, numbered
from cifarnet.checkpoints.snapshots import pack, read_snapshot, write_snapshot
from cifarnet.core.device import init_process
from cifarnet.core.errors import UserError
from cifarnet.core.launch import ALONE
from cifarnet.settings import Settings
from cifarnet.training.plan import Plan
from commands.run_setup import (
    archive_old_snapshots,
    base_objective,
    choose_objective,
    current_run,
    fit_batch,
    snapshots_of_others,
    snapshots_to_keep,
)


def continued_run(source, directory, save_best=True):
    """A run that continues from the snapshot `source` and writes into `directory`."""
    snapshot, lines = read_snapshot(source), []
    return SimpleNamespace(
        resume=SimpleNamespace(source=source, snapshot=snapshot),
        learner=SimpleNamespace(progress=snapshot.state.progress, runtime=ALONE),
        folders={"snapshot_dir": directory},
        settings=Settings.from_flags(save_best=save_best),
        runtime=ALONE,
        log=SimpleNamespace(line=lines.append, lines=lines),
    )


def archive(run):
    kept = snapshots_to_keep(run)
    archive_old_snapshots(run, snapshots_of_others(run), kept)


def write(path, epoch, history=None, **changes):
    history = history or [make_row(2, test_accuracy=0.9), make_row(epoch, test_accuracy=0.1)]
    write_snapshot(pack(make_snapshot(epoch, history=history, **changes)), path)


def test_snapshots_of_other_runs_are_archived_and_this_runs_copied(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    write(old / LAST, 3)
    write(old / BEST, 2, [make_row(2)])
    write(new / LAST, 9, run_id="other")
    run = continued_run(old / LAST, new)
    archive(run)
    assert [read_snapshot(new / name).epoch for name in (LAST, BEST)] == [3, 2]
    (former,) = new.glob("before_*")
    assert [read_snapshot(path).state.run_id for path in former.iterdir()] == ["other"]
    assert run.log.lines == [f"moved the snapshots of an earlier run to {former}"]

    shutil.move(new / LAST, tmp_path / "elsewhere.pth")
    (new / LAST).symlink_to(tmp_path / "elsewhere.pth")
    again = continued_run(new / LAST, new)
    archive(again)
    assert not again.log.lines  # nothing more to move
    write(numbered(new, 5), 5)
    archive(run)
    assert not numbered(new, 5).exists()  # of a later epoch: it will be made again


def test_without_the_best_snapshot_the_best_starts_anew(tmp_path):
    write(tmp_path / LAST, 3)
    run = continued_run(tmp_path / LAST, tmp_path)
    archive(run)
    assert run.learner.progress.best_epoch == 0
    assert "no snapshot of the best epoch 2 is beside" in run.log.lines[0]


def test_a_disk_that_takes_no_snapshots_is_one_line(tmp_path):
    write(tmp_path / LAST, 3)
    run = continued_run(tmp_path / LAST, tmp_path / "missing", save_best=False)
    with pytest.raises(UserError, match=r"--snapshot_dir .*\(No such file"):
        archive(run)


def test_without_a_teacher_the_labels_are_smoothed_weighted_and_mixed():
    flags = {"label_smoothing": 0.2, "class_weights": "balanced", "mixup": 0.2, "seed": 7}
    settings, splits = Settings.from_flags(device="cpu", **flags), small_splits()
    uneven = splits.train.take(np.array([0, 2, 4, 1]))
    splits = replace(splits, train=uneven)
    runtime = replace(init_process(settings.precision), rank=1)
    current = current_run(splits, runtime, Plan(settings, 1), [])
    mixed = choose_objective([], splits, current, runtime, SimpleNamespace(line=print))
    assert (mixed.mix.seed, mixed.mix.rank) == (7, 1)
    assert mixed.objective.smoothing == 0.2
    torch.testing.assert_close(mixed.objective.weights, torch.tensor([2 / 3, 2.0]))


@pytest.mark.parametrize(("asked", "repeats"), [(0, False), (2, True), (5, False)])
def test_teachers_get_their_views_their_statistics_and_a_memory(asked, repeats):
    larger = random_model(classes="ab", network="residual")
    other = {"mean": (0.2, 0.3, 0.4), "std": (0.3, 0.2, 0.1), "source": "larger.pth"}
    teachers = [random_model(classes="ab"), replace(larger, **other)]
    flags = {"teacher": "x", "teacher_tta": "flip", "teacher_epochs": asked, "epochs": 5}
    settings, lines = Settings.from_flags(device="cpu", **flags), []
    splits = small_splits()
    runtime = init_process(settings.precision)
    current = replace(current_run(splits, runtime, Plan(settings, 1), teachers), validates=True)
    assert current.teacher_sha256.split(",") == sorted(each.sha256 for each in teachers)
    log = SimpleNamespace(line=lines.append)
    objective = base_objective(teachers, splits, current, runtime, log)
    assert objective.repeats is repeats
    for name in ("some.pth", "larger.pth"):
        warning = f"warning: the teacher {name} may have trained on the validation images"
        for words in (f"learning from {name}: ", warning):
            assert any(line.startswith(words) for line in lines)
    pixels = splits.train.images[:4].float() / 255

    def normalised(mean, std):
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
        return (pixels - mean) / std

    expected = 0
    for teacher in teachers:
        network, ours = teacher.build().eval(), normalised(teacher.mean, teacher.std)
        with torch.no_grad():
            expected += (network(ours) + network(ours.flip(3))) / 4
    taught = objective.teacher_logits(normalised(splits.mean, splits.std))
    torch.testing.assert_close(taught, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("count", "accumulate", "size"),
    [
        (10_000, 1, 512),
        (60, 1, 60),
        (68, 4, 68),
        (9_999, 5, 510),
        (513, 1, 456),
        (61, 4, 52),
        (45_451, 5, 500),
        (28_729, 8, 496),
        (17, 8, 8),
        (33, 16, 32),
        (53_761, 64, 512),
    ],
)
def test_the_default_batch_size_fits_the_images(count, accumulate, size):
    log = SimpleNamespace(line=lambda text: None)
    fitted = fit_batch(Settings.from_flags(accumulate=accumulate), count, ALONE, log)
    assert fitted.training.batch_size == size


def test_a_batch_size_that_a_snapshot_brings_is_checked_too():
    three = replace(ALONE, world_size=3)
    with pytest.raises(UserError, match="512 cannot be divided evenly by 3 processes"):
        fit_batch(Settings.from_flags(batch_size=512), 50_000, three, None)


@pytest.mark.parametrize(
    ("count", "reason"),
    [
        (9_999, "a multiple of 5"),
        (60, "as there are 60 training images; "),
        (511, "as with 510 the last batch would have too few images: 1"),
    ],
)
def test_a_log_says_why_the_batch_is_smaller(count, reason):
    lines = []
    log = SimpleNamespace(line=lines.append)
    fit_batch(Settings.from_flags(accumulate=5), count, ALONE, log)
    assert [f", {reason}" in line for line in lines] == [True]
