"""Data pipeline: settings -> splits -> batches."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from cifarnet.augment.batched import BatchedEngine
from cifarnet.augment.loading import DeviceLoader, EpochOrder, WorkerLoader
from cifarnet.augment.mixing import Mixing
from cifarnet.augment.per_image import PerImageEngine
from cifarnet.augment.policy import build_policy
from cifarnet.core.device import Runtime, to_device
from cifarnet.core.errors import UserError, printable
from cifarnet.core.threads import has_locks
from cifarnet.images.cifar import read_cifar
from cifarnet.images.digits import read_digits
from cifarnet.images.finding import Say
from cifarnet.images.folder import read_folder
from cifarnet.images.imageset import (
    Dataset,
    ImageSet,
    Splits,
    channel_statistics,
    limited,
    split_holdout,
)
from cifarnet.images.normalise import Batch, Normalise
from cifarnet.settings import Settings
from cifarnet.settings.augmentation import AugmentationSettings
from cifarnet.settings.data import DataSettings

MOST_WORKERS, MOST_ON_CUDA = 4, 16  # by default: with four, a GPU waited (docs/speed.md)
EXAMPLES = 8  # images, and versions of each, that `augmented_examples` shows
BN_IMAGES = 1024  # for the statistics of averaged weights
BN_BATCH = 64  # of these at a time, unless an evaluation batch has more

# --- settings -> splits ---

# By --dataset. The third argument: the class names of a network to evaluate; () for a training run.
DATASETS: dict[str, Callable[[DataSettings, Say, tuple[str, ...]], Dataset]] = {
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "folder": read_folder,
    "digits": read_digits,
}


def load_splits(settings: DataSettings, say: Say, classes: tuple[str, ...] = ()) -> Splits:
    """Reads --dataset; downloads CIFAR-10 or CIFAR-100 if it is missing.

    To evaluate a network, `classes` are its classes. Your own images may then lack training images,
    and images of some classes; without training images, the channel statistics are nan. Raises
    `UserError` if the images cannot be read or do not match the settings.
    """
    if settings.labels and not settings.is_folder:
        raise UserError("--labels names your own images; add --dataset folder")
    dataset = DATASETS[settings.dataset](settings, say, classes)
    train = limited(dataset.train, settings.limit_train, "--limit_train")
    test = limited(dataset.test, settings.limit_test, "--limit_test")
    val = dataset.val
    if val is None and len(train):
        train, val = split_holdout(train, settings.val_fraction)
    mean, std = dataset.statistics or channel_statistics(train.images)
    name = printable(settings.dataset_name or dataset.name)
    return Splits(name, train, val, test, mean, std, dataset.drawn_test)


# --- splits -> batches ---


class Engine(NamedTuple):
    """An augmentation engine, and the loader that runs it."""

    augment: type[PerImageEngine] | type[BatchedEngine]
    load: type[WorkerLoader] | type[DeviceLoader]


# By --augment_engine.
ENGINES = {
    "albumentations": Engine(PerImageEngine, WorkerLoader),
    "batched": Engine(BatchedEngine, DeviceLoader),
}


def build_engine(
    settings: AugmentationSettings,
    size: int,
    mean: tuple[float, float, float],
    device: torch.device,
) -> PerImageEngine | BatchedEngine:
    """The engine of --augment_engine with the policy of --augment, for images of `size` pixels."""
    policy = build_policy(settings, size)
    return ENGINES[settings.augment_engine].augment(policy, mean, device)


class Examples(NamedTuple):
    """Training images, augmented versions of all of them, and their classes."""

    originals: np.ndarray  # uint8 [8,3,S,S]
    versions: list[np.ndarray]  # eight times uint8 [8,3,S,S]
    names: list[str]


def augmented_examples(splits: Splits, settings: Settings, device: torch.device) -> Examples:
    """Eight training images, and eight augmented versions of each. With --mixup or --cutmix each
    version is a batch, mixed within itself."""
    classes, seed = splits.train.classes, settings.training.seed
    subset = limited(splits.train, max(EXAMPLES, len(classes)), "--preview_augment")
    images, labels = subset.images[:EXAMPLES].numpy(), subset.labels[:EXAMPLES]
    engine = build_engine(settings.augmentation, settings.data.image_size, splits.mean, device)
    versions = [engine(images, seed, epoch) for epoch in range(1, EXAMPLES + 1)]
    if settings.augmentation.mixes:
        mixing = Mixing(settings.augmentation, seed, len(classes))
        versions = [
            mixing(torch.from_numpy(batch).float(), labels, (epoch, 0, 0))[0].round().byte().numpy()
            for epoch, batch in enumerate(versions, 1)
        ]
    return Examples(images, versions, [classes[label] for label in labels])


class TrainBatches:
    """The training images of any epoch: shuffled, augmented, normalised, in batches on the device.

    The last batch holds what is left. Each rank gets its share of each batch; a share may be empty.
    What the network sees depends on (seed, epoch, position in the epoch's order), and with
    albumentations on the number of ranks. The number of workers and a resume change nothing.
    `workers` is the number of processes that augment.

    `waiting()` is a context around each wait for a batch: a signal may raise there.
    """

    def __init__(
        self,
        images: ImageSet,
        settings: Settings,
        runtime: Runtime,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.count = len(images)
        self.device = runtime.device
        self.waiting: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
        self.normalise = Normalise(mean, std, runtime.device)
        batch_size, seed = settings.training.batch_size, settings.training.seed
        self.order = EpochOrder(self.count, batch_size, seed, runtime.rank, runtime.world_size)
        workers = settings.data.num_workers
        if workers is None:
            most = MOST_ON_CUDA if runtime.device.type == "cuda" else MOST_WORKERS
            workers = min(most, runtime.threads) if has_locks() else 0
        augmentation, size = settings.augmentation, settings.data.image_size
        engine = build_engine(augmentation, size, mean, runtime.device)
        loader = ENGINES[augmentation.augment_engine].load
        self.loader = loader(images, engine, self.order, workers)
        self.workers = self.loader.workers

    def __len__(self) -> int:
        """Steps in an epoch."""
        return len(self.order)

    def size(self, step: int) -> int:
        """Images in the batch of `step` (from 0), over all ranks."""
        return min(self.order.batch_size, self.count - step * self.order.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of `epoch` (from 1). Raises `RunError` if no worker can start."""
        self.order.epoch = epoch
        batches = iter(self.loader)
        while True:
            with self.waiting():
                batch = next(batches, None)
            if batch is None:
                return
            images, labels = batch
            yield self.normalise(images), to_device(labels, self.device)

    def close(self) -> None:
        """Ends the workers; call it after the last epoch. Their CPU time then counts as ours."""
        self.loader = None


class EvalBatches:
    """All images of a set, once, in order, normalised only. It can be iterated again.

    Without `mean` and `std` they stay pixels, uint8: a `Classifier` normalises them.

    Batches are the same for any number of ranks. Each rank has whole batches, rank 0 the first
    ones. `rounds` is the largest number of batches that a rank has.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        runtime: Runtime,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        has_bar: bool = True,
    ) -> None:
        self.images, self.batch_size, self.device = images, batch_size, runtime.device
        self.has_bar = has_bar and runtime.rank == 0
        self.normalise = Normalise(mean, std, runtime.device) if mean else None
        count = math.ceil(len(images) / batch_size)
        ends = (count * rank // runtime.world_size for rank in (runtime.rank, runtime.rank + 1))
        self.share = slice(*ends)  # of the batches
        self.rounds = math.ceil(count / runtime.world_size)

    def __iter__(self) -> Iterator[Batch]:
        batches = self.images.images.split(self.batch_size)[self.share]
        batch_labels = self.images.labels.split(self.batch_size)[self.share]
        pairs = zip(batches, batch_labels, strict=True)
        looks = {"desc": "evaluating", "unit": "batch", "leave": False}
        # None: hidden without a terminal
        hidden = None if self.has_bar and len(batches) > 1 else True
        for images, labels in tqdm(pairs, total=len(batches), disable=hidden, **looks):
            images = self.normalise(images) if self.normalise else images.to(self.device)
            yield images, labels.to(self.device)

    def stoppable(self, stop: Callable[[], None]) -> Iterator[Batch]:
        """Yields the batches and calls `stop` after each, equally often on all ranks: some ranks
        have a batch less than others."""
        calls = 0
        for batch in self:
            yield batch
            stop()
            calls += 1
        for _ in range(self.rounds - calls):
            stop()


class Batches(NamedTuple):
    """The batches of a run."""

    train: TrainBatches
    held_out: EvalBatches  # validation images where there are any, else the test images
    validates: bool  # whether there are validation images
    bn_batches: EvalBatches | tuple[()]  # unchanged training images, the same ones on each rank


def build_batches(splits: Splits, settings: Settings, runtime: Runtime) -> Batches:
    """The batches of `splits`; `bn_batches` are for the statistics of averaged weights only."""
    mean, std = splits.mean, splits.std
    held_out = splits.test if splits.val is None else splits.val
    bn_batches: EvalBatches | tuple[()] = ()
    if settings.training.ema_decay:
        random = np.random.default_rng(settings.training.seed)
        subset = splits.train.take(random.permutation(len(splits.train))[:BN_IMAGES])
        alone = replace(runtime, rank=0, world_size=1)
        batch_size = max(BN_BATCH, settings.training.eval_batch_size)
        bn_batches = EvalBatches(subset, batch_size, alone, mean, std, has_bar=False)
    return Batches(
        TrainBatches(splits.train, settings, runtime, mean, std),
        EvalBatches(held_out, settings.training.eval_batch_size, runtime, mean, std),
        splits.val is not None,
        bn_batches,
    )
