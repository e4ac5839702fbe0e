"""What bench.py measures of training: each function returns a rate, per second.

Each measurement runs in a process of its own: see benching.py.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.profiler import ProfilerActivity

from cifarnet.core.device import init_process
from cifarnet.core.launch import ALONE, Ranks
from cifarnet.core.log import RunLog
from cifarnet.core.machine import peak_memory
from cifarnet.core.ranks import Group
from cifarnet.images.cifar import CIFAR10_MEAN, CIFAR10_STD
from cifarnet.images.imageset import Splits
from cifarnet.networks.build import build_model, parameter_count
from cifarnet.networks.cifarnet import CIFARNet
from cifarnet.networks.cost import multiply_adds
from cifarnet.networks.fast import use_plain_forms
from cifarnet.reporting.metrics import predict
from cifarnet.reporting.recorders import Recorders
from cifarnet.settings import Settings
from cifarnet.settings.augmentation import AugmentationSettings
from cifarnet.settings.network import NetworkSettings
from cifarnet.settings.precision import PrecisionSettings
from cifarnet.training.compiling import compiled
from cifarnet.training.objective import Labels
from cifarnet.training.plan import Plan
from commands.bench_plain import BATCH, random_images
from data import Batches, EvalBatches, build_batches, build_engine
from train import Learner, fit, run_epoch

PARAMETERS = 174_762  # of CIFARNet


def matmul(device: str, amp: bool) -> float:
    """Floating-point operations of a square matrix product: the ceiling, in its precision."""
    runtime = init_process(PrecisionSettings(device=device, amp=amp))
    a = torch.randn(4096, 4096, device=device).to(runtime.amp_dtype or torch.float32)
    return 2 * 4096**3 / _seconds(lambda: a @ a, 2, 5)


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
    torch.set_num_threads(1)
    settings = AugmentationSettings(augment_engine=engine)
    run = build_engine(settings, 32, CIFAR10_MEAN, torch.device("cpu"))
    images = random_images(BATCH).images.numpy()
    return BATCH / _seconds(lambda: run(images, 0), 2, 3)


def evaluation(device: str, amp: bool, *, plain: bool = False) -> float:
    """Images of the evaluation pass."""
    settings = Settings.from_flags(device=device, amp=amp)
    runtime = init_process(settings.precision, settings.training.seed)
    model = build_model(settings.network, 10).to(runtime.device)
    if plain:
        use_plain_forms(model)
    batches = EvalBatches(random_images(BATCH * 4), BATCH, runtime, CIFAR10_MEAN, CIFAR10_STD)
    return 4 * BATCH / _seconds(lambda: predict(model, batches, runtime), 1, 3)


def _seconds(work: Callable[[], object], warm_up: int, repeats: int) -> float:
    """The median time of `work`, after `warm_up` runs that do not count."""
    times = []
    for i in range(warm_up + repeats):
        started = time.perf_counter()
        work()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        if i >= warm_up:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure_ranks(group: Group, device: str) -> None:
    """One rank's part; the first prints the figures of all as JSON.

    Images per second with 512 in a batch on all ranks, and with 512 on each; and the seconds that
    the ranks take to average their gradients.
    """
    ranks = group.ranks
    rates = {
        name: training(device, True, "batched", 3, ranks, batch_size, epochs=8)
        for name, batch_size in (("in all", BATCH), ("each", BATCH * ranks.world_size))
    }
    gradient = torch.zeros(
        PARAMETERS, device=init_process(PrecisionSettings(device=device), ranks=ranks).device
    )
    alone = ranks.world_size == 1
    rates["exchange"] = 0.0 if alone else _seconds(lambda: dist.all_reduce(gradient), 5, 50)
    if ranks.rank == 0:
        print(json.dumps({"rate": rates, "memory": peak_memory(device)}))


def flops_per_image() -> float:
    """Floating-point operations of a training step per image: three times the forward pass."""
    return 3 * 2 * multiply_adds(CIFARNet(), Settings().data.image_size)


def network_costs(**flags: Any) -> dict[str, int]:
    """The parameters and multiply-adds an image of the network with these settings."""
    network = build_model(NetworkSettings(**flags), 10)
    return {
        "parameters": parameter_count(network),
        "multiply_adds": multiply_adds(network, Settings().data.image_size),
    }
