"""The way of the images: settings -> splits -> batches."""

import contextlib
import math
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from cifarnet.augment.batched import BatchedEngine
from cifarnet.augment.mixing import Mixing
from cifarnet.augment.per_image import PerImageEngine
from cifarnet.augment.policy import Draws, build_policy, draw
from cifarnet.core.device import Runtime
from cifarnet.core.errors import UserError, lost_workers, printable
from cifarnet.core.seeds import AUGMENTATION, ORDER, derived_seed
from cifarnet.images.cifar import CIFAR, read_cifar
from cifarnet.images.digits import read_digits
from cifarnet.images.folder import read_folder
from cifarnet.images.imageset import (
    ImageSet,
    Splits,
    channel_statistics,
    hold_back,
    limited,
    resized,
)
from cifarnet.images.normalise import Batch, Normalise
from cifarnet.settings import Settings

MOST_WORKERS = 4  # by default

# --- settings -> splits ---


def load_splits(settings: Settings, say: Callable[[str], None]) -> Splits:
    """Reads the data set that `settings` names; downloads CIFAR-10 or CIFAR-100 if it is missing.

    `say` is told what the user should know. Raises `UserError` if the images cannot be read or do
    not match the settings.
    """
    root, size, val = Path(settings.data.data_dir), settings.data.image_size, None
    if settings.data.dataset != "folder" and settings.data.labels:
        raise UserError("--labels names your own images; add --dataset folder")
    cifar = CIFAR.get(settings.data.dataset)
    if cifar is not None:
        train, test = read_cifar(cifar, root, settings.data.data_url, say)
        train, test = (replace(part, images=resized(part.images, size)) for part in (train, test))
        name = cifar.title
    elif settings.data.dataset == "folder":
        train, val, test = read_folder(settings, say)
        name = root.resolve().name
        if val is not None and settings.data.val_fraction:
            raise UserError(
                f"{root} has validation images of its own, so --val_fraction would hold back more; "
                f"leave it out"
            )
    else:
        train, test = read_digits(size)
        name = "digits"
    train = limited(train, settings.data.limit_train, "--limit_train")
    test = limited(test, settings.data.limit_test, "--limit_test")
    if val is None:
        train, val = hold_back(train, settings.data.val_fraction)
    if cifar is not None:
        mean, std = cifar.mean, cifar.std
    else:
        mean, std = channel_statistics(train.images)
    return Splits(printable(settings.data.dataset_name or name), train, val, test, mean, std)


# --- splits -> batches ---


def build_engine(
    settings: Settings, mean: tuple[float, float, float], device: torch.device
) -> PerImageEngine | BatchedEngine:
    """The engine of --augment_engine with the policy of --augment."""
    policy = build_policy(settings.augmentation, settings.data.image_size)
    if settings.augmentation.augment_engine == "batched":
        return BatchedEngine(policy, mean, device)
    return PerImageEngine(policy, mean)


def augmented_examples(
    splits: Splits, settings: Settings, device: torch.device
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Eight training images, and eight augmented versions of all of them: uint8 [8,3,S,S] each.

    With --mixup or --cutmix each version is a batch, mixed within itself.
    """
    some = limited(splits.train, max(8, len(splits.train.classes)), "--preview_augment")
    images, labels = some.images[:8].numpy(), some.labels[:8]
    engine = build_engine(settings, splits.mean, device)
    versions = [engine(images, settings.training.seed, epoch) for epoch in range(1, 9)]
    if settings.augmentation.mixes:
        mixing = Mixing(settings.augmentation, settings.training.seed, len(some.classes))
        versions = [
            mixing(torch.from_numpy(batch).float(), labels, (epoch, 0, 0))[0].round().byte().numpy()
            for epoch, batch in enumerate(versions, 1)
        ]
    return images, versions


class TrainBatches:
    """The training images of any epoch: shuffled, augmented, normalised, in batches on the device.

    The last batch holds what is left. Each rank gets its share of each batch; a share may be empty.
    What the network sees depends on (seed, epoch, position in the epoch's order) only. The number
    of workers and a resume change nothing. `workers` is the number of processes that augment.

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
        self.order = EpochOrder(
            len(images),
            settings.training.batch_size,
            settings.training.seed,
            runtime.rank,
            runtime.world_size,
        )
        engine = build_engine(settings, mean, runtime.device)
        if isinstance(engine, BatchedEngine):
            self.workers = 0
            self.loader = _BatchesOnDevice(images, engine, self.order)
            return
        default = min(MOST_WORKERS, runtime.threads)
        self.workers = default if settings.data.num_workers is None else settings.data.num_workers
        with _more_workers_than_cores():
            self.loader = DataLoader(
                _AugmentedBatches(images, engine, settings.training.seed),
                batch_size=None,  # the data set returns whole batches
                # Arrays come through a pipe. Tensors would take shared memory and open files, and
                # the run would hang when either is full.
                collate_fn=_unchanged,
                sampler=_AsArrays(self.order),
                num_workers=self.workers,
                persistent_workers=self.workers > 0,
                pin_memory=runtime.device.type == "cuda",  # receives them in a thread
                # keeps each epoch from drawing from the global generator
                generator=torch.Generator(),
            )

    def __len__(self) -> int:
        """Steps in an epoch."""
        return len(self.order)

    def size(self, step: int) -> int:
        """Images in the batch of `step` (from 0), over all ranks."""
        return min(self.order.batch_size, self.count - step * self.order.batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of `epoch` (from 1). Raises `RunError` if no worker can start."""
        self.order.epoch = epoch
        try:
            with _more_workers_than_cores():
                batches = iter(self.loader)
        except OSError as problem:  # open files, processes, memory, /dev/shm
            _destroy_silently(problem)
            raise lost_workers(problem.strerror) from None
        while True:
            with self.waiting():
                batch = next(batches, None)
            if batch is None:
                return
            images, labels = (self._tensor(values) for values in batch)
            yield self.normalise(images), labels.to(self.device, non_blocking=True)

    def _tensor(self, values: np.ndarray | Tensor) -> Tensor:
        if isinstance(values, Tensor):  # on the device already
            return values
        tensor = torch.from_numpy(values)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def close(self) -> None:
        """Ends the workers; call it after the last epoch. Their CPU time then counts as ours."""
        self.loader = None


class EvalBatches:
    """All images of a set, once, in order, normalised only. It can be iterated again.

    Without `mean` and `std` they stay pixels, uint8: a `Classifier` normalises them.

    Batches are the same for any number of ranks. Each rank has some whole batches, rank 0 the first
    ones. `rounds` is the largest number of batches that a rank has.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        runtime: Runtime,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
    ) -> None:
        self.images, self.batch_size, self.device = images, batch_size, runtime.device
        self.rank = runtime.rank
        self.normalise = Normalise(mean, std, runtime.device) if mean else None
        count = math.ceil(len(images) / batch_size)
        ends = (count * rank // runtime.world_size for rank in (runtime.rank, runtime.rank + 1))
        self.own = slice(*ends)
        self.rounds = math.ceil(count / runtime.world_size)

    def __iter__(self) -> Iterator[Batch]:
        batches = self.images.images.split(self.batch_size)[self.own]
        labels_of_batches = self.images.labels.split(self.batch_size)[self.own]
        pairs = zip(batches, labels_of_batches, strict=True)
        about = {"desc": "evaluating", "unit": "batch", "leave": False}
        hidden = True if self.rank or len(batches) < 2 else None  # None: where no terminal is
        for images, labels in tqdm(pairs, total=len(batches), disable=hidden, **about):
            images = self.normalise(images) if self.normalise else images.to(self.device)
            yield images, labels.to(self.device)


# --- the parts of TrainBatches ---


class EpochOrder(Sampler):
    """The order of the images in `epoch`, as a rank's share of each batch.

    Yields (epoch, position of the share's first image in the epoch's order, image indices int64
    [B]). Shares are contiguous, and their sizes differ by one at most. An empty share occurs in a
    last batch with fewer images than ranks.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 1

    def __len__(self) -> int:
        return math.ceil(self.count / self.batch_size)

    def __iter__(self) -> Iterator[tuple[int, int, Tensor]]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch, ORDER))
        order = torch.randperm(self.count, generator=generator)
        for first in range(0, self.count, self.batch_size):
            size = min(self.batch_size, self.count - first)
            start = first + size * self.rank // self.world_size
            end = first + size * (self.rank + 1) // self.world_size
            yield self.epoch, start, order[start:end]


class _AsArrays(Sampler):
    """The items of `order` with arrays for tensors: see `TrainBatches.loader`."""

    def __init__(self, order: EpochOrder) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[int, int, np.ndarray]]:
        for epoch, first, chosen in self.order:
            yield epoch, first, chosen.numpy()


class _AugmentedBatches(Dataset):
    """A worker's task: an item of `_AsArrays` -> augmented uint8 [B,3,S,S] and labels."""

    def __init__(self, images: ImageSet, engine: PerImageEngine, seed: int) -> None:
        self.images, self.engine, self.seed = images, engine, seed

    def __getitem__(self, item: tuple[int, int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        epoch, first, chosen = item
        pixels = self.images.images[chosen].numpy()
        augmented = self.engine(pixels, self.seed, epoch, AUGMENTATION, first)
        return augmented, self.images.labels[chosen].numpy()


def _unchanged(batch: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return batch


def _destroy_silently(problem: OSError) -> None:
    """Frees torch's unfinished iterator, which `problem` holds; else Python prints its errors."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda dropped: None
    try:
        traceback.clear_frames(problem.__traceback__)
    finally:
        sys.unraisablehook = hook


@contextlib.contextmanager
def _more_workers_than_cores() -> Iterator[None]:
    """Silences torch's warning of more workers than cores; the log of a run says it once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


class _BatchesOnDevice:
    """The batches of `order.epoch`, augmented on the device: uint8 [B,3,S,S] and labels.

    The whole data set stays on the device (150 MB for 50,000 images of 32x32).
    """

    def __init__(self, images: ImageSet, engine: BatchedEngine, order: EpochOrder) -> None:
        self.images, self.labels = images.images.to(engine.device), images.labels.to(engine.device)
        self.engine, self.order = engine, order
        self.ahead = max(1, engine.block * order.world_size // order.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order, engine = self.order, self.engine
        draws = draw(engine.policy, len(self.images), order.seed, order.epoch, AUGMENTATION)
        batches = list(order)
        for start in range(0, len(batches), self.ahead):
            group = batches[start : start + self.ahead]  # augmented together: fewer, larger calls
            chosen = torch.cat([indices for _, _, indices in group])
            chosen = chosen.to(engine.device, non_blocking=True)
            images = self.images.index_select(0, chosen)
            if len(chosen):
                drawn = [draws.part(first, first + len(indices)) for _, first, indices in group]
                images = engine.apply(images, Draws(*map(torch.cat, zip(*drawn, strict=True))))
            sizes = [len(indices) for _, _, indices in group]
            yield from zip(images.split(sizes), self.labels[chosen].split(sizes), strict=True)


class Batches(NamedTuple):
    """The batches of a run."""

    train: TrainBatches
    held_out: EvalBatches  # validation images where there are any, else the test images
    validates: bool  # whether there are validation images
    clean: EvalBatches | tuple[()]  # unchanged training images, the same ones on each rank


def build_batches(splits: Splits, settings: Settings, runtime: Runtime) -> Batches:
    """The batches of `splits`; `clean` ones are for the statistics of averaged weights only."""
    mean, std = splits.mean, splits.std
    held_out = splits.test if splits.val is None else splits.val
    clean: EvalBatches | tuple[()] = ()
    if settings.training.ema_decay:
        count = max(1024, len(splits.train.classes))
        some = limited(splits.train, count, "--ema_decay")
        alone = replace(runtime, rank=0, world_size=1)
        pixels = len(some) * 32**2  # in a batch: no more memory for larger images
        batch_size = min(len(some), max(1, pixels // settings.data.image_size**2))
        clean = EvalBatches(some, batch_size, alone, mean, std)
    return Batches(
        TrainBatches(splits.train, settings, runtime, mean, std),
        EvalBatches(held_out, settings.training.eval_batch_size, runtime, mean, std),
        splits.val is not None,
        clean,
    )
