"""An epoch's augmented images: in which order, and by workers or on the device."""

import math
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cifarnet.augment.batched import BatchedEngine
from cifarnet.augment.per_image import PerImageEngine
from cifarnet.augment.policy import take
from cifarnet.core.device import to_device
from cifarnet.core.errors import lost_workers, reason
from cifarnet.core.seeds import AUGMENTATION, ORDER, derived_seed
from cifarnet.images.imageset import ImageSet


class EpochOrder(Sampler):
    """The order of the images in `epoch`, as a rank's share of each batch.

    Yields (epoch, position of the share's first image in the epoch's order, image indices as an
    array int64 [B]). Shares are contiguous, and their sizes differ by one at most.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 1

    def __len__(self) -> int:
        return math.ceil(self.count / self.batch_size)

    def __iter__(self) -> Iterator[tuple[int, int, np.ndarray]]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch, ORDER))
        order = torch.randperm(self.count, generator=generator).numpy()
        for first in range(0, self.count, self.batch_size):
            size = min(self.batch_size, self.count - first)
            start = first + size * self.rank // self.world_size
            end = first + size * (self.rank + 1) // self.world_size
            yield self.epoch, start, order[start:end]


class DeviceLoader:
    """The batches of `order.epoch`, augmented on the device: uint8 [B,3,S,S] and labels.

    The data set stays on the device (150 MB for 50,000 images of 32x32). There are no workers:
    the argument is that of `WorkerLoader`.
    """

    def __init__(
        self, images: ImageSet, engine: BatchedEngine, order: EpochOrder, workers: int = 0
    ) -> None:
        self.images, self.labels = images.images.to(engine.device), images.labels.to(engine.device)
        self.engine, self.order, self.workers = engine, order, 0
        self.ahead = max(1, engine.block * order.world_size // order.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order, engine = self.order, self.engine
        draws = engine.policy.draw(len(self.images), order.seed, order.epoch, AUGMENTATION)
        batches = list(order)
        for start in range(0, len(batches), self.ahead):
            group = batches[start : start + self.ahead]  # augmented together: fewer, larger calls
            sizes = [len(indices) for _, _, indices in group]
            chosen = torch.from_numpy(np.concatenate([indices for _, _, indices in group]))
            chosen = to_device(chosen, engine.device)
            positions = [torch.arange(first, first + len(indices)) for _, first, indices in group]
            drawn = take(draws, torch.cat(positions))
            images = engine.apply(self.images.index_select(0, chosen), drawn)
            yield from zip(images.split(sizes), self.labels[chosen].split(sizes), strict=True)


class WorkerLoader:
    """The batches of `order.epoch`, augmented in `workers` processes, or in this one for 0: uint8
    [B,3,S,S] and labels. They lie in page-locked memory for a GPU."""

    def __init__(
        self, images: ImageSet, engine: PerImageEngine, order: EpochOrder, workers: int = 0
    ) -> None:
        self.workers, self.pins = workers, engine.device.type == "cuda"
        # The log of a run says once that there are more workers than cores.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        self.loader = DataLoader(
            _AugmentedBatches(images, engine, order.seed),
            batch_size=None,  # the data set returns whole batches
            # Arrays come through a pipe. Tensors would take shared memory and open files, and the
            # run would hang when either is full.
            collate_fn=tuple,
            sampler=order,
            num_workers=workers,
            # "forkserver", the default from Python 3.14 on, needs shared memory for all images.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            persistent_workers=workers > 0,
            pin_memory=self.pins,  # receives them in a thread
            worker_init_fn=_prepare_worker,
            generator=torch.Generator(),  # else each epoch would draw from the global generator
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Starts the workers if need be. Raises `RunError` if none can start."""
        try:
            batches = iter(self.loader)
        except (OSError, RuntimeError) as problem:  # open files, processes, threads, memory
            _destroy_silently(problem)
            raise lost_workers(reason(problem)) from None
        return ((self._tensor(images), self._tensor(labels)) for images, labels in batches)

    def _tensor(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory() if self.pins else tensor


class _AugmentedBatches(Dataset):
    """A worker's task: an item of `EpochOrder` -> augmented uint8 [B,3,S,S] and labels."""

    def __init__(self, images: ImageSet, engine: PerImageEngine, seed: int) -> None:
        self.images, self.engine, self.seed = images, engine, seed

    def __getitem__(self, item: tuple[int, int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        epoch, first, chosen = item
        pixels = self.images.images[chosen].numpy()
        augmented = self.engine(pixels, self.seed, epoch, AUGMENTATION, first)
        return augmented, self.images.labels[chosen].numpy()


def _prepare_worker(worker: int) -> None:
    """Ends a worker that cannot start a thread: it needs one to send its batches. A worker of a run
    that ignores SIGTERM ignores it too; torch has given it a handler of its own."""
    try:
        threading.Thread(target=int).start()
    except RuntimeError:
        raise SystemExit(1) from None
    if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _destroy_silently(problem: OSError | RuntimeError) -> None:
    """Frees torch's unfinished iterator, which `problem` holds; else Python prints its errors."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda dropped: None
    try:
        traceback.clear_frames(problem.__traceback__)
    finally:
        sys.unraisablehook = hook
