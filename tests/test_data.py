import multiprocessing
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.batches import MEAN, STD, batches_of, numbered_images
from support.small_runs import small_splits

import data
from cifarnet.augment.policy import build_policy
from cifarnet.core.device import init_process
from cifarnet.core.errors import UserError
from cifarnet.images.imageset import Dataset, ImageSet, Splits, channel_statistics
from cifarnet.settings import Settings
from cifarnet.settings.augmentation import AugmentationSettings
from cifarnet.settings.data import DataSettings
from data import ENGINES, EvalBatches, TrainBatches, build_batches, build_engine, load_splits


def load(**settings) -> Splits:
    return load_splits(DataSettings(**settings), print)


def test_importing_data_loads_no_library_that_a_run_may_not_need():
    heavy = {"albumentations", "cv2", "sklearn", "torchvision", "matplotlib"}
    code = f"import sys, data; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"


# --- splits ---


def test_digits_are_split_as_the_settings_say():
    whole = load(dataset="digits")
    assert (whole.name, whole.val) == ("digits", None)
    assert len(whole.train) + len(whole.test) == 1797
    part = load(dataset="digits", limit_train=100, limit_test=20, val_fraction=0.3)
    assert (len(part.train), len(part.val), len(part.test)) == (70, 30, 20)
    limited = load(dataset="digits", limit_train=100)
    assert limited.same_normalization(*channel_statistics(limited.train.images))
    assert part.same_normalization(*channel_statistics(part.train.images))  # without held-out ones
    assert not part.same_normalization(limited.mean, limited.std)
    again = load(dataset="digits", limit_train=100, limit_test=20, val_fraction=0.3)
    for every, some in ((whole.train, part.val), (whole.test, part.test)):
        assert torch.equal(every.images[some.names], some.images)
    assert torch.equal(again.train.images, part.train.images)
    assert torch.equal(again.val.images, part.val.images)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"limit_train": 9}, "--limit_train 9 is fewer images than the 10 classes"),
        ({"limit_test": 9}, "--limit_test 9 is fewer images than the 10 classes"),
        ({"limit_train": 10, "val_fraction": 0.5}, "--val_fraction 0.5 holds out no image"),
    ],
)
def test_settings_that_do_not_fit_the_images_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        load(dataset="digits", **flags)


def test_published_statistics_win_over_those_of_the_images(monkeypatch):
    statistics = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    published = Dataset("noise", numbered_images(20), None, numbered_images(10), statistics)
    monkeypatch.setitem(data.DATASETS, "cifar10", lambda *_: published)
    splits = load()
    assert splits.name == "noise"
    assert splits.same_normalization(*statistics)


@pytest.mark.parametrize("part", ["", "train"])
def test_a_folder_of_images_is_not_taken_for_that_of_a_download(tree, part):
    with pytest.raises(UserError, match="holds folders of images; add --dataset folder"):
        load(data_dir=str(tree / part), data_url="file:///nowhere")


def test_labels_need_a_folder(tree):
    with pytest.raises(UserError, match=r"--labels .*; add --dataset folder"):
        load(data_dir=str(tree), labels="labels.csv")


def test_validation_images_of_a_folder_select_and_no_others(tree):
    (tree / "test").rename(tree / "val")
    shutil.copytree(tree / "val", tree / "test")
    splits = load(dataset="folder", data_dir=str(tree))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (12, 6, 6)
    with pytest.raises(UserError, match="--val_fraction would hold out more; leave it out"):
        load(dataset="folder", data_dir=str(tree), val_fraction=0.2)


def test_a_folder_has_its_own_name_or_a_given_one(tree, monkeypatch):
    assert load(dataset="folder", data_dir=str(tree)).name == "pictures"
    assert load(dataset="folder", data_dir=str(tree), dataset_name="mine").name == "mine"
    monkeypatch.chdir(tree)
    assert load(dataset="folder", data_dir=".").name == "pictures"
    renamed = tree.rename(tree.with_name("two\nlines"))
    assert load(dataset="folder", data_dir=str(renamed)).name == "two\\nlines"


def test_a_class_with_one_image_is_not_held_out(tree):
    for path in sorted((tree / "train" / "bar").iterdir())[1:]:
        path.unlink()
    splits = load(dataset="folder", data_dir=str(tree), val_fraction=0.4)
    assert splits.train.labels.bincount().tolist() == [1, 4]
    assert splits.val.labels.tolist() == [1, 1]


# --- engines ---


@pytest.mark.parametrize("name", ENGINES)
def test_the_engine_has_the_policy_of_the_settings(name):
    flags = {"augment_p": 0.25, "affine_p": 0.1, "jitter_p": 0.2, "hole_p": 0.0}
    settings = AugmentationSettings(augment_engine=name, **flags)
    engine = build_engine(settings, 48, MEAN, torch.device("cpu"))
    assert type(engine) is ENGINES[name].augment
    steps, expected = engine.policy.steps, build_policy(settings, 48).steps
    assert [vars(step) for step in steps] == [vars(step) for step in expected]


# --- batches ---


@pytest.mark.parametrize("engine", ENGINES)
def test_an_epoch_shows_each_image_once_the_last_batch_what_is_left(engine):
    train = batches_of(numbered_images(50), augment="none", augment_engine=engine)
    assert len(train) == 4
    orders = []
    for epoch in (1, 2):
        seen = list(train.epoch(epoch))
        assert [len(labels) for _, labels in seen] == [16, 16, 16, 2]
        labels = torch.cat([labels for _, labels in seen])
        assert sorted(labels.tolist()) == list(range(50))
        values = torch.cat([images[:, 0, 0, 0] for images, _ in seen])
        assert torch.equal(((values * STD[0] + MEAN[0]) * 255).round().long(), labels)
        orders.append(labels.tolist())
    assert len({*map(tuple, orders), tuple(range(50))}) == 3


def test_closed_batches_have_no_workers_left():
    train = batches_of(numbered_images(50), num_workers=1)
    assert len(list(train.epoch(1))) == 4
    assert multiprocessing.active_children()
    train.close()
    assert not multiprocessing.active_children()
    assert len(train) == 4


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize(
    ("workers", "policy"), [(1, "none"), (2, "none"), (3, "none"), (2, "trivialaugment")]
)
def test_the_number_of_workers_changes_nothing(workers, policy):
    images = numbered_images(50)
    alone, shared = (
        batches_of(images, num_workers=count, auto_augment=policy) for count in (0, workers)
    )
    for epoch in (1, 2, 7):
        for (a, a_labels), (b, b_labels) in zip(
            alone.epoch(epoch), shared.epoch(epoch), strict=True
        ):
            assert torch.equal(a, b)
            assert torch.equal(a_labels, b_labels)


def test_the_batched_engine_needs_no_workers_and_shows_the_same_images_in_the_same_order():
    images = numbered_images(50)
    batched = batches_of(images, num_workers=3, augment_engine="batched")
    assert batched.workers == 0
    for (a, a_labels), (b, b_labels) in zip(
        batched.epoch(3), batches_of(images).epoch(3), strict=True
    ):
        assert torch.equal(a_labels, b_labels)
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())


@pytest.mark.parametrize("batch_size", [7, 50])
def test_the_batched_engine_sees_the_same_images_in_batches_of_any_size(batch_size):
    images = numbered_images(50)
    epochs = (
        batches_of(images, augment_engine="batched", batch_size=size).epoch(2)
        for size in (batch_size, 16)
    )
    first, second = (torch.cat([x for x, _ in epoch]) for epoch in epochs)
    assert torch.equal(first, second)
    assert torch.equal(images.images, numbered_images(50).images)


def test_batches_augmented_together_or_alone_are_the_same():
    images = numbered_images(50)
    together, alone = (batches_of(images, augment_engine="batched") for _ in range(2))
    alone.loader.ahead = 1
    assert together.loader.ahead > 1
    for (a, _), (b, _) in zip(together.epoch(1), alone.epoch(1), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("engine", ENGINES)
def test_epochs_seeds_and_batches_draw_anew_at_the_size_of_the_settings(engine):
    images = ImageSet(torch.full((40, 3, 48, 48), 200, dtype=torch.uint8), torch.zeros(40), ())

    def seen(epoch: int, seed: int = 42) -> torch.Tensor:
        batches = batches_of(images, augment_engine=engine, image_size=48, seed=seed)
        state = torch.get_rng_state()
        shown = torch.cat([x for x, _ in batches.epoch(epoch)])
        assert torch.equal(torch.get_rng_state(), state)
        return shown

    first = seen(1)
    assert first.shape == (40, 3, 48, 48)
    assert torch.equal(first, seen(1))
    for one, two in ((first, seen(2)), (first, seen(1, seed=1)), (first[:16], first[16:32])):
        assert not torch.equal(one, two)


# --- ranks ---


def ranks_of(world_size: int, settings: Settings):
    return [
        replace(init_process(settings.precision), rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]


@given(images=st.integers(1, 60), batch_size=st.integers(1, 25), world_size=st.integers(1, 6))
def test_evaluation_shows_each_image_once_in_whole_batches(images, batch_size, world_size):
    settings, seen = Settings.from_flags(device="cpu"), []
    for runtime in ranks_of(world_size, settings):
        batches = EvalBatches(numbered_images(images), batch_size, runtime, MEAN, STD)
        stop = Mock()
        part = [labels.tolist() for _, labels in batches.stoppable(stop)]
        assert batches.rounds - 1 <= len(part) <= batches.rounds == stop.call_count
        assert part == [labels.tolist() for _, labels in batches]  # again
        seen += part
    assert seen == [labels.tolist() for labels in torch.arange(images).split(batch_size)]


def test_the_statistics_of_averaged_weights_are_of_classes_as_they_are():
    """Not of as many images of each class; in batches, so that memory is no limit."""
    splits = small_splits(3000, 4)
    splits = replace(splits, train=replace(splits.train, labels=torch.arange(3000) // 2700))
    settings = Settings.from_flags(device="cpu", ema_decay=0.9, batch_size=32, num_workers=0)
    ranks = ranks_of(2, settings)
    first, second = (list(build_batches(splits, settings, rank).bn_batches) for rank in ranks)
    assert [len(labels) for _, labels in first] == [64] * 16
    assert sum(labels.sum().item() for _, labels in first) == pytest.approx(102, abs=30)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))


def shares_of(images, engine: str, world_size: int) -> list[list[torch.Tensor]]:
    settings = Settings.from_flags(
        device="cpu", num_workers=0, batch_size=16, augment_engine=engine
    )
    trains = [
        TrainBatches(images, settings, runtime, MEAN, STD)
        for runtime in ranks_of(world_size, settings)
    ]
    assert {len(train) for train in trains} == {-(-len(images) // 16)}
    assert [trains[0].size(step) for step in range(len(trains[0]))] == [16, 16, 1]
    return [[x for x, _ in train.epoch(2)] for train in trains]


@pytest.mark.parametrize("engine", ENGINES)
def test_no_rank_repeats_anothers_draws(engine):
    same = numbered_images(33)
    same = replace(same, images=(same.images[:1] + 200).expand(33, -1, -1, -1).contiguous())
    first, second = (torch.cat(part) for part in shares_of(same, engine, 2))
    assert (len(first), len(second)) == (16, 17)
    assert not torch.equal(first, second[:16])


def test_the_batched_engine_shows_ranks_what_it_shows_one_process():
    images = numbered_images(33)
    whole = [x for x, _ in batches_of(images, augment_engine="batched").epoch(2)]
    for steps, expected in zip(
        zip(*shares_of(images, "batched", 4), strict=True), whole, strict=True
    ):
        torch.testing.assert_close(torch.cat(steps), expected)
