"""Measures speed on this machine: `python bench.py [--inference] [--json FILE]`.

Of training, it compares main.py with a plain loop and with the ceiling, the machine's matrix
products. Each measurement runs in its own process, because the allocator's setting belongs to the
process. The processes take turns for three rounds, because a machine's speed drifts; the table
shows medians. Rows that explain rather than decide run in the first round only, and not with
--quick.

The flags are read before torch is imported: each measurement imports what it uses.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarnet.checkpoints.places import find_trained
from cifarnet.core.commandline import (
    Parser,
    check_package,
    path_argument,
    print_error,
    run_command,
)
from cifarnet.core.errors import RunError, UserError
from cifarnet.core.files import naming_failures
from cifarnet.core.launch import ALONE, Ranks
from cifarnet.core.settings import FLAGS, Settings, settings_from_dict
from export import ONNX

if TYPE_CHECKING:
    import torch

    from cifarnet.checkpoints.weights import Weights
    from cifarnet.core.ranks import Group
    from cifarnet.images.imageset import ImageSet, Splits
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


# --- what is measured: each function returns a rate, per second ---


def matmul(device: str, amp: bool) -> float:
    """Floating-point operations of a square matrix product: the ceiling, in its precision."""
    import torch

    from cifarnet.core.device import start

    runtime = start(Settings(device=device, amp=amp))
    a = torch.randn(4096, 4096, device=device).to(runtime.amp_dtype or torch.float32)
    return 2 * 4096**3 / _seconds(lambda: a @ a, 2, 5)


def plain_loop(device: str, steps: int) -> float:
    """Images of a loop as one writes it first: NCHW, float32, torch's defaults."""
    import torch.nn.functional as F
    from torch import nn, optim
    from torch.utils.data import DataLoader

    from model import CIFARNet

    model = CIFARNet(dropout=Settings().dropouts).to(device)
    optimizer = optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    images = _PlainImages(_random_images(BATCH * (steps + 1)))
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

    from cifarnet.core.device import start
    from cifarnet.networks.fast import use_plain_forms
    from model import build_model
    from train import compiled

    settings = Settings(device=device, amp=amp, **changes)
    runtime = start(settings)
    model = build_model(settings, 10).to(runtime.device)
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

    settings = Settings(
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
    from cifarnet.core.device import start
    from cifarnet.images.cifar import CIFAR10_MEAN, CIFAR10_STD
    from cifarnet.images.imageset import Splits
    from cifarnet.training.objective import Labels
    from data import build_batches
    from model import build_model
    from train import Learner, Plan

    runtime = start(settings, ranks)
    images = _random_images(settings.batch_size * steps)
    splits = Splits("noise", images, None, _random_images(BATCH), CIFAR10_MEAN, CIFAR10_STD)
    data = build_batches(splits, settings, runtime)
    learner = Learner(build_model(settings, 10), settings, runtime)
    return learner, Labels(settings.smoothing), data, Plan(settings, len(data.train))


def profile(device: str) -> str:
    """The twenty costliest operations of main.py's training steps (--amp, batched), as a table.

    On CUDA they are sorted by their own time on the device, else by their own time on the CPU.
    """
    import torch
    from torch.profiler import ProfilerActivity

    from train import run_epoch

    settings = Settings(device=device, amp=True, augment_engine="batched", epochs=2)
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
    from data import build_engine

    torch.set_num_threads(1)
    run = build_engine(Settings(augment_engine=engine), CIFAR10_MEAN, torch.device("cpu"))
    images = _random_images(BATCH).images.numpy()
    return BATCH / _seconds(lambda: run(images, 0), 2, 3)


def evaluation(device: str, amp: bool, *, plain: bool = False) -> float:
    """Images of the evaluation pass."""
    from cifarnet.core.device import start
    from cifarnet.images.cifar import CIFAR10_MEAN, CIFAR10_STD
    from cifarnet.networks.fast import use_plain_forms
    from cifarnet.reporting.metrics import predict
    from data import EvalBatches
    from model import build_model

    settings = Settings(device=device, amp=amp)
    runtime = start(settings)
    model = build_model(settings, 10).to(runtime.device)
    if plain:
        use_plain_forms(model)
    batches = EvalBatches(_random_images(BATCH * 4), BATCH, runtime, CIFAR10_MEAN, CIFAR10_STD)
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


def _random_images(count: int, size: int = 32) -> ImageSet:
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


# --- several ranks ---


def measure_ranks(group: Group, device: str) -> None:
    """One rank's part; the first prints the figures of all as JSON.

    Images per second with 512 in a batch on all ranks, and with 512 on each; and the seconds that
    the ranks take to average their gradients.
    """
    import torch
    import torch.distributed as dist

    from cifarnet.core.device import peak_memory, start

    ranks = group.ranks
    found = {
        name: training(device, True, "batched", 3, ranks, batch_size, epochs=8)
        for name, batch_size in (("in all", BATCH), ("each", BATCH * ranks.world_size))
    }
    gradient = torch.zeros(PARAMETERS, device=start(Settings(device=device), ranks).device)
    alone = ranks.world_size == 1
    found["exchange"] = 0.0 if alone else _seconds(lambda: dist.all_reduce(gradient), 5, 50)
    if ranks.rank == 0:
        print(json.dumps({"rate": found, "memory": peak_memory(device)}))


def scaling(counts: list[int], device: str) -> str:
    """Measured figures for each number of ranks on this machine, as a Markdown table.

    The efficiency is the rate divided by the rate of one rank; on GPUs, where each rank adds one,
    divided by their number too.
    """
    rows = [
        "| ranks | exchange | 512 images in all | efficiency | 512 images each | efficiency |",
        "|---|---|---|---|---|---|",
    ]
    found: dict[int, dict[str, float]] = {}
    for count in counts:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        found[count] = _in_child("ranks", device, launcher)["rate"]
        cells = [
            f"{found[count][name]:,.0f} img/s | {_efficiency(name, count, found, device)}"
            for name in ("in all", "each")
        ]
        rows.append(f"| {count} | {found[count]['exchange'] * 1e3:.2f} ms | {' | '.join(cells)} |")
    return "\n".join(rows)


def _efficiency(name: str, count: int, found: dict[int, dict[str, float]], device: str) -> str:
    if 1 not in found:
        return ""
    return f"{found[count][name] / found[1][name] / (count if device == 'cuda' else 1):.0%}"


# --- inference ---


def inference(options: argparse.Namespace) -> dict[str, dict[str, float | None]]:
    """The figures of each form of a trained network: speed, bytes of its file, and top-1.

    ONNX runs on the CPU. Without --data_dir there is no top-1, and random pixels calibrate int8,
    which does not change its speed.
    """
    import tempfile

    import torch

    from cifarnet.checkpoints.snapshots import read_trained
    from cifarnet.core.device import start
    from cifarnet.inference.readback import answers
    from cifarnet.inference.speed import BATCHES, measure
    from export import FORMATS, Source
    from model import build_classifier
    from train import compiled

    device = start(Settings(device=options.device)).device
    trained = read_trained(options.pretrained)
    splits, test = _images_of(trained, options.data_dir)

    def on_device(compile_it: bool = False, dtype: torch.dtype | None = None) -> Callable:
        classifier = build_classifier([trained], amp=True).to(device)
        if compile_it:
            classifier.network = compiled(classifier.network, device)

        def classify(pixels: torch.Tensor) -> torch.Tensor:
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                return classifier(pixels.to(device)).cpu()

        return classify

    forms = {"PyTorch, fp32": on_device(), "PyTorch, bf16": on_device(dtype=torch.bfloat16)}
    if options.compiled:
        forms["PyTorch, fp32, compiled"] = on_device(compile_it=True)
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("safetensors", "onnx", "onnx-int8"):
            path = Path(folder) / FORMATS[name].out
            FORMATS[name].write(Source(trained, splits, None), path)
            sizes[name] = path.stat().st_size
            if name != "safetensors":
                forms[name] = FORMATS[name].read(path)
    pixels = _random_images(max(BATCHES), settings_from_dict(trained.config).image_size).images
    speeds = measure(forms, pixels, 1 if options.quick else 5, _progress)
    figures = {}
    for name, classify in forms.items():
        top1 = None
        if test is not None:
            _progress(f"top-1: {name}")
            top1 = (answers(classify, test.images).argmax(1) == test.labels).double().mean().item()
        size = sizes.get(name, sizes["safetensors"])
        figures[name] = speeds[name].figures() | {"bytes": size, "top1": top1}
    _progress("")
    return figures


def _images_of(trained: Weights, data_dir: str | None) -> tuple[Splits, ImageSet | None]:
    """The images in `data_dir`, and those to test on; without it noise, and None."""
    from cifarnet.checkpoints.state import check_classes
    from cifarnet.images.imageset import Splits
    from cifarnet.inference.speed import BATCHES
    from data import load_splits
    from evaluate import settings_for

    if data_dir is None:
        noise = _random_images(max(BATCHES), settings_from_dict(trained.config).image_size)
        return Splits("noise", noise, None, noise, trained.mean, trained.std), None
    splits = load_splits(settings_for([trained], {"data_dir": data_dir}, None), print)
    check_classes(trained.classes, splits.test.classes)
    return splits, splits.test


def inference_table(figures: dict[str, dict]) -> str:
    """The figures of `inference` as a Markdown table."""
    from cifarnet.inference.speed import BATCHES

    heads = ["network", "one picture", "95th percentile", *(f"{n} at a time" for n in BATCHES)]
    rows = [f"| {' | '.join(heads)} | file | top-1 |", "|---" * (len(heads) + 2) + "|"]
    for name, figure in figures.items():
        times = [f"{figure[key] * 1e3:.2f} ms" for key in ("latency", "latency_95")]
        rates = [f"{figure[key]:,.0f} img/s" for key in map("batch_{}".format, BATCHES)]
        top1 = "" if figure["top1"] is None else f"{figure['top1']:.2%}"
        cells = [name, *times, *rates, f"{figure['bytes'] / 1e6:.2f} MB", top1]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


# --- the command ---


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 0; 1 if a measurement failed, 2 for a wrong request."""
    try:
        options = _parse(sys.argv[1:] if argv is None else argv)
    except UserError as problem:
        return print_error(problem)
    if options.child == "ranks":
        from cifarnet.core.ranks import run_on_ranks

        return run_on_ranks(lambda group: measure_ranks(group, options.device))
    return run_command(lambda: _bench(options))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags, and in `chosen` the names of the measurements, in `counts` those of --ranks."""
    parser = Parser(
        description="Measures the speed of training, or of --inference, on this machine."
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="One round of the rows that decide: two minutes on two cores.",
    )
    parser.add_argument("--json", metavar="FILE", help="Write the figures to this file too.")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="Only measurements with TEXT in their name."
    )
    parser.add_argument(
        "--compiled", action="store_true", help="Measure torch.compile too: a minute per row."
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="Instead, show the twenty costliest operations of a training step.",
    )
    parser.add_argument(
        "--ranks",
        metavar="N,N",
        help="Instead, measure training with each of these numbers of processes.",
    )
    parser.add_argument(
        "--networks",
        action="store_true",
        help="Instead, measure training steps of CIFARNet with each attention and of other sizes.",
    )
    parser.add_argument(
        "--inference",
        action="store_true",
        help="Instead, measure a trained network at work: in PyTorch and as ONNX files, in turns.",
    )
    parser.add_argument(
        "--pretrained",
        type=path_argument,
        metavar="NAME|PATH",
        help="The network of --inference: the name of a result, a .safetensors file or a .pth "
        "snapshot (default: long).",
    )
    parser.add_argument(
        "--data_dir",
        type=path_argument,
        metavar="DIR",
        help="Images for --inference, to measure the accuracy of each form too.",
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    counts = options.ranks.split(",") if options.ranks else []
    if not all(count.strip().isdecimal() and int(count) > 0 for count in counts):
        raise UserError(f"--ranks {options.ranks}: name numbers of processes, as in 1,2")
    if not options.inference and (options.pretrained or options.data_dir):
        raise UserError("--pretrained and --data_dir are for --inference; add it")
    if options.inference:
        options.pretrained = options.pretrained or "long"
        find_trained(options.pretrained)
        for package in ONNX:
            check_package(package, "--inference")
    options.counts = [int(count) for count in counts]
    options.chosen = [
        name
        for name, (decides, _) in measurements(options.device).items()
        if options.only in name
        and options.networks == name.startswith("network, ")
        and (decides or not options.quick)
        and (options.compiled or "compiled" in options.only or "compiled" not in name)
    ]
    if not options.chosen:
        of_quick = " of --quick" if options.quick else ""
        raise UserError(f"--only {options.only}: no measurement{of_quick} has that in its name")
    return options


def _bench(options: argparse.Namespace) -> None:
    from cifarnet.core.device import available_cores, peak_memory, start

    device = options.device
    if device == "auto":
        device = start(Settings()).device.type
    if options.profile:
        print(profile(device))
        return
    if options.inference:
        figures = inference(options)
        _tell(figures, inference_table(figures), device, options.json)
        return
    named = measurements(device)
    if options.child:
        rate = named[options.child][1]()
        print(json.dumps({"rate": rate, "memory": peak_memory(device)}))
        return
    if options.counts:
        print(f"measured here, bf16, batched engine, {device}, {available_cores()} cores:\n")
        print(scaling(options.counts, device))
        return
    found: dict[str, list[dict]] = {name: [] for name in options.chosen}
    for round_ in range(1 if options.quick else 3):
        for name in found:
            if round_ == 0 or named[name][0]:
                _progress(f"round {round_ + 1}: {name}")
                found[name].append(_in_child(name, device))
    _progress("")
    figures = {
        name: {
            "rate": statistics.median(run["rate"] for run in runs),
            "memory": max(run["memory"] for run in runs),
        }
        for name, runs in found.items()
    }
    if options.networks:
        figures = {name: figures[name] | network_costs(name) for name in figures}
        shown = networks_table(figures)
    else:
        shown = table(figures, flops_per_image())
    _tell(figures, shown, device, options.json)


def _progress(text: str) -> None:
    """Shows `text` in place of the text before, on the terminal."""
    print(f"\r{text:55}" if text else f"\r{'':55}\r", end="", file=sys.stderr, flush=True)


def _in_child(name: str, device: str, launcher: Sequence[str] = ()) -> dict:
    """Measures `name` in a process of its own: its rate and peak memory. Raises `RunError`."""
    command = [sys.executable, *launcher, __file__, "--child", name, "--device", device]
    # A system may pin kernels of OpenBLAS. torch does not use it; numpy would be slower.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    child = subprocess.run(command, capture_output=True, text=True, env=clean)
    if child.returncode != 0:
        why = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
        raise RunError(f"the measurement {name!r} failed: {why[-1]}")
    return json.loads(child.stdout.splitlines()[-1])


def _tell(figures: dict[str, dict], shown: str, device: str, path: str | None) -> None:
    """Prints the table `shown`, and writes the figures to `path` as JSON. Raises `UserError`."""
    import torch

    from cifarnet.core.device import available_cores, start

    machine, cores = start(Settings(device=device)).device_name, available_cores()
    python = platform.python_version()
    print(f"{machine}, {cores} cores, torch {torch.__version__}, python {python}\n")
    print(shown)
    if path:
        content = {"machine": machine, "cores": cores, "figures": figures}
        with naming_failures("--json", Path(path)):
            Path(path).write_text(json.dumps(content, indent=2) + "\n")


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

    network = build_model(Settings(**NETWORKS[name.removeprefix("network, ")]), 10)
    return {
        "parameters": parameter_count(network),
        "multiply_adds": multiply_adds(network, Settings().image_size),
    }


def networks_table(figures: dict[str, dict]) -> str:
    """The figures of --networks as a Markdown table: costs, rate in training, peak memory."""
    rows = [
        f"| fp32, {NETWORKS_BATCH} images a step | parameters | multiply-adds | training "
        f"| of the published | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    published = figures.get("network, published", {}).get("rate")
    for name, figure in figures.items():
        share = f"{figure['rate'] / published:.0%}" if published else ""
        cells = [
            name.removeprefix("network, "),
            f"{figure['parameters']:,}",
            f"{figure['multiply_adds'] / 1e6:,.1f} million",
            f"{figure['rate']:,.0f} img/s",
            share,
            f"{figure['memory'] / 2**30:.1f} GiB",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def table(figures: dict[str, dict], flops: float) -> str:
    """The figures as a Markdown table; `flops` are those of a training step per image.

    Each rate, its ratio to the plain loop, its share of the ceiling, and the peak memory.
    """
    rows = [
        "| measured | rate | times the plain loop | share of ceiling | peak memory |",
        "|---|---|---|---|---|",
    ]
    plain = figures.get("plain loop, fp32", {}).get("rate")
    for name, figure in figures.items():
        rate, trains = figure["rate"], name.startswith(("plain", "main", "step"))
        shown = f"{rate / 1e9:,.0f} GFLOP/s" if name.startswith("matrix") else f"{rate:,.0f} img/s"
        ratio = f"{rate / plain:.1f}" if plain and trains else ""
        product = f"matrix product, {'bf16' if 'bf16' in name else 'fp32'}"
        ceiling = figures.get(product, {}).get("rate")
        share = f"{rate * flops / ceiling:.0%}" if ceiling and trains else ""
        memory = f"{figure['memory'] / 2**30:.1f} GiB"
        rows.append(f"| {name} | {shown} | {ratio} | {share} | {memory} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
