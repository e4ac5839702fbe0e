"""What bench.py measures of training: each function returns a rate, per second. Each measurement
runs in a process of its own: see benching.py."""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
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
from cifarnet.reporting.metrics import collect_logits
from cifarnet.reporting.recorders import Recorders
from cifarnet.settings import Settings
from cifarnet.settings.augmentation import AugmentationSettings
from cifarnet.settings.network import NetworkSettings
from cifarnet.settings.precision import PrecisionSettings
from cifarnet.training.objective import Labels
from cifarnet.training.plan import Plan
from cifarnet.training.tally import Tally
from commands import bench_plain
from commands.bench_plain import BATCH, noise
from data import Batches, EvalBatches, build_batches, build_engine
from train import Learner, StepBatch, fit, run_epoch, train_step


def matmul(device: str, amp: bool) -> float:
    """Floating-point operations of a square matrix product: the ceiling, in its precision."""
    runtime = init_process(PrecisionSettings(device=device, amp=amp))
    side = 4096 if device == "cuda" else 2048
    a = torch.randn(side, side, device=device).to(runtime.amp_dtype or torch.float32)
    return 2 * side**3 / _seconds(lambda: a @ a, 2, 5)


def plain_loop(device: str) -> float:
    """Images of the usual loop: see bench_plain.py."""
    return bench_plain.plain_loop(device, max(1, _steps(device) // 3))


def step(device: str, plain: bool = False, **flags: Any) -> float:
    """Images of main.py's step alone, on one batch that is already on the device. `plain`: in the
    plain forms of the network's blocks. `flags` are those of main.py."""
    settings = Settings.from_flags(**{"device": device, "batch_size": BATCH} | flags)
    learner, objective, _, plan = _run_on_noise(settings, 1)
    if plain:
        use_plain_forms(learner.network)
    count, on_device = settings.training.batch_size, learner.runtime.device
    images = torch.randn(count, 3, 32, 32, device=on_device)
    images = images.contiguous(memory_format=torch.channels_last)
    batch = StepBatch(images, torch.arange(count, device=on_device) % 10, count, epoch=1, step=0)
    tally = Tally(learner.runtime, learner.scaler.is_enabled())
    return count / _seconds(lambda: train_step(learner, objective, batch, plan, tally), 3, 3)


def training(
    device: str,
    amp: bool,
    engine: str,
    steps: int | None = None,
    ranks: Ranks = ALONE,
    batch_size: int = BATCH,
    epochs: int = 2,
) -> float:
    """Images of main.py's own loop, with augmentation and workers. An epoch has `steps` steps;
    None: as many as take a second at least."""
    settings = Settings.from_flags(
        device=device, amp=amp, augment_engine=engine, epochs=epochs, batch_size=batch_size
    )
    learner, *parts = _run_on_noise(settings, steps or _steps(device), ranks)
    fit(learner, *parts, Recorders([], RunLog(), lambda work: work()))
    # The first epoch starts the workers and takes memory.
    return statistics.median(row.images_per_second for row in learner.progress.history[1:])


def _run_on_noise(
    settings: Settings, steps: int, ranks: Ranks = ALONE
) -> tuple[Learner, Labels, Batches, Plan]:
    """The parts of a run whose epochs have `steps` steps."""
    runtime = init_process(settings.precision, settings.training.seed, ranks)
    images = noise(settings.training.batch_size * steps)
    splits = Splits("noise", images, None, noise(BATCH), CIFAR10_MEAN, CIFAR10_STD)
    data = build_batches(splits, settings, runtime)
    learner = Learner(build_model(settings.network, 10), settings, runtime)
    return learner, Labels(settings.training.smoothing), data, Plan(settings, len(data.train))


def profile(device: str) -> str:
    """The twenty costliest operations of main.py's training steps (--amp, batched), as a table. On
    CUDA they are sorted by their own time on the device, else by their own time on the CPU."""
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
    runtime = learner.runtime
    table = profiler.key_averages().table(sort_by=sort_by, row_limit=20, max_name_column_width=60)
    return f"three steps on {runtime.device_name}, in {runtime.precision}\n{table}"


def augmentation(device: str, engine: str) -> float:
    """Images of an augmentation engine; on the CPU, on one core."""
    torch.set_num_threads(1)
    settings = AugmentationSettings(augment_engine=engine)
    run = build_engine(settings, 32, CIFAR10_MEAN, torch.device(device))
    images = noise(BATCH).images.numpy()
    return BATCH / _seconds(lambda: run(images, 0), 2, 3)


def evaluation(device: str, amp: bool, plain: bool = False) -> float:
    """Images of the evaluation pass, in two batches."""
    settings = Settings.from_flags(device=device, amp=amp)
    runtime = init_process(settings.precision, settings.training.seed)
    model = build_model(settings.network, 10).to(runtime.device).eval()
    if plain:
        use_plain_forms(model)
    batches = EvalBatches(noise(BATCH * 2), BATCH, runtime, CIFAR10_MEAN, CIFAR10_STD)
    return 2 * BATCH / _seconds(lambda: collect_logits(model, batches, runtime), 1, 3)


def _steps(device: str) -> int:
    """The steps of an epoch, so that it takes a second at least."""
    return 50 if device == "cuda" else 2


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
    runtime = init_process(PrecisionSettings(device=device), ranks=ranks)
    gradient = torch.zeros(parameter_count(CIFARNet()), device=runtime.device)
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
