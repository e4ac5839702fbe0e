"""What bench.py measures of training: each function returns a rate, per second.

Each measurement runs in a process of its own, and imports there what it uses.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cifarnet.core.launch import ALONE, Ranks
from cifarnet.settings import FLAGS, Settings
from cifarnet.settings.network import NetworkSettings
from cifarnet.settings.precision import PrecisionSettings

if TYPE_CHECKING:
    import torch

    from cifarnet.core.ranks import Group
    from cifarnet.images.imageset import ImageSet
    from cifarnet.training.objective import Labels
    from data import Batches
    from train import Learner, Plan

BATCH = 512
PARAMETERS = 174_762  # of CIFARNet
NETWORKS: dict[str, dict[str, Any]] = {  # the settings of each row of --networks
    "published": {},
    **{name: {"attention": name} for name in FLAGS["attention"].metadata["choices"][1:]},
    **{f"compound scale {steps}": {"compound_scale": steps} for steps in (1, 2)},
}
NETWORKS_BATCH = 128  # images: the largest network needs four times the memory of the published


def matmul(device: str, amp: bool) -> float:
    """Floating-point operations of a square matrix product: the ceiling, in its precision."""
    import torch

    from cifarnet.core.device import init_process

    runtime = init_process(PrecisionSettings(device=device, amp=amp))
    a = torch.randn(4096, 4096, device=device).to(runtime.amp_dtype or torch.float32)
    return 2 * 4096**3 / _seconds(lambda: a @ a, 2, 5)


def plain_loop(device: str, steps: int) -> float:
    """Images of a loop as one writes it first: NCHW, float32, torch's defaults."""
    import torch.nn.functional as F
    from torch import nn, optim
    from torch.utils.data import DataLoader

    from model import CIFARNet

    model = CIFARNet(dropout=Settings().network.dropouts).to(device)
    optimizer = optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    images = _PlainImages(random_images(BATCH * (steps + 1)))
    taken = []
    started = time.perf_counter()
    for batch, labels in DataLoader(images, BATCH, shuffle=True, num_workers=2):
        loss = F.cross_entropy(model(batch.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        taken.append(time.perf_counter() - started)
        started = time.perf_counter()
    return BATCH / statistics.median(taken[1:])


def step(
    device: str,
    amp: bool,
    *,
    plain: bool = False,
    compile_it: bool = False,
    batch: int = BATCH,
    **changes: Any,
) -> float:
    """Images of main.py's step alone, on one batch that is already on the device.

    `changes` are settings of the network.
    """
    import torch
    import torch.nn.functional as F

    from cifarnet.core.device import init_process
    from cifarnet.networks.fast import use_plain_forms
    from cifarnet.training.compiling import compiled
    from model import build_model

    settings = Settings.from_flags(device=device, amp=amp, **changes)
    runtime = init_process(settings.precision, settings.training.seed)
    model = build_model(settings.network, 10).to(runtime.device)
    if plain:
        use_plain_forms(model)
    forward = compiled(model, runtime.device) if compile_it else model
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    images = torch.randn(batch, 3, 32, 32, device=runtime.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=runtime.device) % 10

    def one() -> None:
        with runtime.autocast():
            loss = F.cross_entropy(forward(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return batch / _seconds(one, 3, 3)


def training(
    device: str,
    amp: bool,
    engine: str,
    steps: int,
    ranks: Ranks = ALONE,
    batch_size: int = BATCH,
    epochs: int = 2,
) -> float:
    """Images of main.py's own loop, with augmentation and workers."""
    from cifarnet.core.log import RunLog
    from cifarnet.reporting.recorders import Recorders
    from train import fit

    settings = Settings.from_flags(
        device=device, amp=amp, augment_engine=engine, epochs=epochs, batch_size=batch_size
    )
    learner, *parts = _run_on_noise(settings, steps, ranks)
    fit(learner, *parts, Recorders([], RunLog(), lambda work: work()))
    # The first epoch starts the workers and takes memory.
    return statistics.median(row.images_per_second for row in learner.progress.history[1:])


def _run_on_noise(
    settings: Settings, steps: int, ranks: Ranks = ALONE
) -> tuple[Learner, Labels, Batches, Plan]:
    """The parts of a run whose epochs have `steps` steps."""
    from cifarnet.core.device import init_process
    from cifarnet.images.cifar import CIFAR10_MEAN, CIFAR10_STD
    from cifarnet.images.imageset import Splits
    from cifarnet.training.objective import Labels
    from data import build_batches
    from model import build_model
    from train import Learner, Plan

    runtime = init_process(settings.precision, settings.training.seed, ranks)
    images = random_images(settings.training.batch_size * steps)
    splits = Splits("noise", images, None, random_images(BATCH), CIFAR10_MEAN, CIFAR10_STD)
    data = build_batches(splits, settings, runtime)
    learner = Learner(build_model(settings.network, 10), settings, runtime)
    return learner, Labels(settings.training.smoothing), data, Plan(settings, len(data.train))


def profile(device: str) -> str:
    """The twenty costliest operations of main.py's training steps (--amp, batched), as a table.

    On CUDA they are sorted by their own time on the device, else by their own time on the CPU.
    """
    import torch
    from torch.profiler import ProfilerActivity

    from train import run_epoch

    settings = Settings.from_flags(
        device=device, amp=True, augment_engine="batched", epochs=2, batch_size=BATCH
    )
    learner, objective, data, plan = _run_on_noise(settings, 3)
    run_epoch(learner, objective, data.train, plan)  # warm-up
    activities, sort_by = [ProfilerActivity.CPU], "self_cpu_time_total"
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
        sort_by = "self_device_time_total"
    with torch.profiler.profile(activities=activities) as profiler:
        run_epoch(learner, objective, data.train, plan)
    averages = profiler.key_averages()
    return averages.table(sort_by=sort_by, row_limit=20, max_name_column_width=60)


def augmentation(engine: str) -> float:
    """Images of an augmentation engine on one core."""
    import torch

    from cifarnet.images.cifar import CIFAR10_MEAN
    from cifarnet.settings.augmentation import AugmentationSettings
    from data import build_engine

    torch.set_num_threads(1)
    settings = AugmentationSettings(augment_engine=engine)
    run = build_engine(settings, 32, CIFAR10_MEAN, torch.device("cpu"))
    images = random_images(BATCH).images.numpy()
    return BATCH / _seconds(lambda: run(images, 0), 2, 3)


def evaluation(device: str, amp: bool, *, plain: bool = False) -> float:
    """Images of the evaluation pass."""
    from cifarnet.core.device import init_process
    from cifarnet.images.cifar import CIFAR10_MEAN, CIFAR10_STD
    from cifarnet.networks.fast import use_plain_forms
    from cifarnet.reporting.metrics import predict
    from data import EvalBatches
    from model import build_model

    settings = Settings.from_flags(device=device, amp=amp)
    runtime = init_process(settings.precision, settings.training.seed)
    model = build_model(settings.network, 10).to(runtime.device)
    if plain:
        use_plain_forms(model)
    batches = EvalBatches(random_images(BATCH * 4), BATCH, runtime, CIFAR10_MEAN, CIFAR10_STD)
    return 4 * BATCH / _seconds(lambda: predict(model, batches, runtime), 1, 3)


def _seconds(work: Callable[[], object], warm_up: int, times: int) -> float:
    """The median time of `work`, after `warm_up` runs that do not count."""
    import torch

    taken = []
    for i in range(warm_up + times):
        started = time.perf_counter()
        work()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        if i >= warm_up:
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def random_images(count: int, size: int = 32) -> ImageSet:
    """The same random pixels each time, with ten classes in turn."""
    import torch

    from cifarnet.images.imageset import ImageSet

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count) % 10, tuple("0123456789"))


class _PlainImages:
    """A data set as one writes it first: one image at a time, normalised on the CPU."""

    def __init__(self, images: ImageSet) -> None:
        import albumentations as A
        import cv2

        from cifarnet.images.cifar import CIFAR10_MEAN, CIFAR10_STD

        self.pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.labels
        border = {"border_mode": cv2.BORDER_CONSTANT, "fill": (125, 123, 114)}
        affine = {"translate_percent": (-0.0625, 0.0625), "scale": (0.9, 1.1), "rotate": (-15, 15)}
        side = (16, 16)
        hole = {"num_holes_range": (1, 1), "hole_height_range": side, "hole_width_range": side}
        self.transform = A.Compose(
            [
                A.PadIfNeeded(40, 40, **border),
                A.RandomCrop(32, 32),
                A.HorizontalFlip(p=0.5),
                A.Affine(**affine, p=0.5),
                A.ColorJitter(0.2, 0.2, 0.2, 0.02, p=0.5),
                A.CoarseDropout(**hole, p=0.5),
                A.Normalize(CIFAR10_MEAN, CIFAR10_STD),
                A.ToTensorV2(),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(image=self.pixels[i])["image"], self.labels[i]


def measurements(device: str) -> dict[str, tuple[bool, Callable[[], float]]]:
    """Each measurement by its name, in the order of the table, and whether it decides something."""
    steps = 50 if device == "cuda" else 3  # in an epoch: a second at least
    named: dict[str, tuple[bool, Callable[[], float]]] = {
        "matrix product, fp32": (True, lambda: matmul(device, amp=False)),
        "matrix product, bf16": (True, lambda: matmul(device, amp=True)),
        "plain loop, fp32": (True, lambda: plain_loop(device, steps // 3)),
    }

    def add(name: str, decides: bool, measure: Callable, *args: Any, **how: Any) -> None:
        named[name] = decides, lambda: measure(*args, **how)

    for dtype in ("fp32", "bf16"):
        amp = dtype == "bf16"
        add(
            f"main.py, {dtype}, albumentations",
            True,
            training,
            device,
            amp,
            "albumentations",
            steps,
        )
        add(f"main.py, {dtype}, batched", amp, training, device, amp, "batched", steps)
        add(f"step, {dtype}, plain forms", False, step, device, amp, plain=True)
        add(f"step, {dtype}, fast forms", False, step, device, amp)
        add(f"step, {dtype}, compiled", False, step, device, amp, compile_it=True)
        add(f"evaluation, {dtype}, plain forms", False, evaluation, device, amp, plain=True)
        add(f"evaluation, {dtype}, fast forms", amp, evaluation, device, amp)
    for engine in ("albumentations", "batched"):
        add(f"augmentation, one core, {engine}", True, augmentation, engine)
    for name, changes in NETWORKS.items():
        add(f"network, {name}", True, step, device, False, batch=NETWORKS_BATCH, **changes)
    return named


def measure_ranks(group: Group, device: str) -> None:
    """One rank's part; the first prints the figures of all as JSON.

    Images per second with 512 in a batch on all ranks, and with 512 on each; and the seconds that
    the ranks take to average their gradients.
    """
    import torch
    import torch.distributed as dist

    from cifarnet.core.device import init_process
    from cifarnet.core.memory import peak_memory

    ranks = group.ranks
    found = {
        name: training(device, True, "batched", 3, ranks, batch_size, epochs=8)
        for name, batch_size in (("in all", BATCH), ("each", BATCH * ranks.world_size))
    }
    gradient = torch.zeros(
        PARAMETERS, device=init_process(PrecisionSettings(device=device), ranks=ranks).device
    )
    alone = ranks.world_size == 1
    found["exchange"] = 0.0 if alone else _seconds(lambda: dist.all_reduce(gradient), 5, 50)
    if ranks.rank == 0:
        print(json.dumps({"rate": found, "memory": peak_memory(device)}))


def flops_per_image() -> float:
    """Floating-point operations of a training step per image: three times the forward pass."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from model import CIFARNet

    with FlopCounterMode(display=False) as counter:
        CIFARNet().eval()(torch.zeros(1, 3, 32, 32))
    return 3 * counter.get_total_flops()


def network_costs(name: str) -> dict[str, int]:
    """The parameters and multiply-adds an image of the network that a row is named after."""
    from cifarnet.networks.cost import multiply_adds
    from model import build_model, parameter_count

    network = build_model(NetworkSettings(**NETWORKS[name.removeprefix("network, ")]), 10)
    return {
        "parameters": parameter_count(network),
        "multiply_adds": multiply_adds(network, Settings().data.image_size),
    }
