"""How fast training is here, against the plain loop and the machine's ceiling: `python bench.py [--json FILE]`.

Each measurement runs in a process of its own, since the allocator's setting is the process's, and the
processes take turns for several rounds, since machines have moods; what is printed are the medians. Rows that
explain more than they decide are measured in the first round only, and left out by --quick.
"""

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

import albumentations as A
import cv2
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from cifarnet.core.commandline import Parser
from cifarnet.core.device import available_cores, peak_memory, start
from cifarnet.core.errors import RunError, UserError
from cifarnet.core.launch import ALONE, Ranks
from cifarnet.core.ranks import Group, run_on_ranks
from cifarnet.core.settings import Settings
from cifarnet.images.cifar import CIFAR10_MEAN, CIFAR10_STD
from cifarnet.images.imageset import ImageSet, Splits
from cifarnet.networks.fast import use_plain_forms
from cifarnet.reporting.metrics import predict
from data import EvalBatches, build_engine
from model import CIFARNet, build_model
from train import Trainer, compiled

BATCH = 512


def _random_images(count: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count) % 10, tuple("0123456789"))


def _seconds(work: Callable[[], object], warm_up: int, times: int) -> float:
    """The median time of `work`, after `warm_up` runs that do not count."""
    taken = []
    for i in range(warm_up + times):
        started = time.perf_counter()
        work()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        if i >= warm_up:
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


# --- what is measured: each returns a rate, per second ---------------------------------------------------------


def matmul(device: str, amp: bool) -> float:
    """Multiplications and additions of a square matrix product: the ceiling of everything below, in its precision."""
    runtime = start(Settings(device=device, amp=amp))
    a = torch.randn(4096, 4096, device=device).to(runtime.amp_dtype or torch.float32)
    return 2 * 4096**3 / _seconds(lambda: a @ a, 2, 5)


class _PlainImages(Dataset):
    """As one writes it first: an image at a time, normalised on the CPU."""

    def __init__(self, images: ImageSet) -> None:
        self.images, self.labels = (
            images.images.permute(0, 2, 3, 1).contiguous().numpy(),
            images.labels,
        )
        self.transform = A.Compose(
            [
                A.PadIfNeeded(40, 40, border_mode=cv2.BORDER_CONSTANT, fill=(125, 123, 114)),
                A.RandomCrop(32, 32),
                A.HorizontalFlip(p=0.5),
                A.Affine(
                    translate_percent=(-0.0625, 0.0625), scale=(0.9, 1.1), rotate=(-15, 15), p=0.5
                ),
                A.ColorJitter(0.2, 0.2, 0.2, 0.02, p=0.5),
                A.CoarseDropout(
                    num_holes_range=(1, 1),
                    hole_height_range=(16, 16),
                    hole_width_range=(16, 16),
                    p=0.5,
                ),
                A.Normalize(CIFAR10_MEAN, CIFAR10_STD),
                A.ToTensorV2(),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(image=self.images[i])["image"], self.labels[i]


def plain_loop(device: str, steps: int) -> float:
    """Images a second of the loop that a practitioner writes first: NCHW, float32, torch's defaults."""
    model = use_plain_forms(CIFARNet()).to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    loader = DataLoader(
        _PlainImages(_random_images(BATCH * (steps + 1))), BATCH, shuffle=True, num_workers=2
    )
    taken = []
    started = time.perf_counter()
    for images, labels in loader:
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        taken.append(time.perf_counter() - started)
        started = time.perf_counter()
    return BATCH / statistics.median(taken[1:])


def step(device: str, amp: bool, *, plain: bool = False, compile_it: bool = False) -> float:
    """Images a second of the project's step alone, on one batch that is at hand."""
    config = Settings(device=device, amp=amp)
    runtime = start(config)
    model = build_model(config, 10).to(runtime.device)
    if plain:
        use_plain_forms(model)
    forward = compiled(model, runtime.device) if compile_it else model
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    images = torch.randn(BATCH, 3, 32, 32, device=runtime.device).contiguous(
        memory_format=torch.channels_last
    )
    labels = torch.arange(BATCH, device=runtime.device) % 10

    def one() -> None:
        with runtime.autocast():
            loss = F.cross_entropy(forward(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return BATCH / _seconds(one, 3, 3)


def training(
    device: str,
    amp: bool,
    engine: str,
    steps: int,
    ranks: Ranks = ALONE,
    batch_size: int = BATCH,
    epochs: int = 2,
) -> float:
    """Images a second of main.py's own loop, augmentation and workers included."""
    config = Settings(
        device=device, amp=amp, augment_engine=engine, epochs=epochs, batch_size=batch_size
    )
    runtime = start(config, ranks)
    images = _random_images(batch_size * steps)
    splits = Splits("noise", images, None, _random_images(BATCH), CIFAR10_MEAN, CIFAR10_STD)
    trainer = Trainer(build_model(config, 10), splits, config, runtime)
    rows: list[dict] = []
    trainer.fit(rows.append)
    # the first epoch starts workers and takes memory
    return statistics.median(row["images_per_second"] for row in rows[1:])


def augmentation(engine: str) -> float:
    """Images a second of an augmentation engine on one core."""
    torch.set_num_threads(1)
    run = build_engine(Settings(augment_engine=engine), CIFAR10_MEAN, torch.device("cpu"))
    images = _random_images(BATCH).images.numpy()
    return BATCH / _seconds(lambda: run(images, 0), 2, 3)


def evaluation(device: str, amp: bool, *, plain: bool = False) -> float:
    """Images a second of the evaluation pass."""
    config = Settings(device=device, amp=amp)
    runtime = start(config)
    model = build_model(config, 10).to(runtime.device)
    if plain:
        use_plain_forms(model)
    batches = EvalBatches(_random_images(BATCH * 4), BATCH, runtime, CIFAR10_MEAN, CIFAR10_STD)
    return 4 * BATCH / _seconds(lambda: predict(model, batches, runtime), 1, 3)


def measurements(device: str) -> dict[str, tuple[bool, Callable[[], float]]]:
    """Every measurement by its name, in the order of the table, and whether it decides something."""
    named: dict[str, tuple[bool, Callable[[], float]]] = {
        "matrix product, fp32": (True, lambda: matmul(device, amp=False)),
        "matrix product, bf16": (True, lambda: matmul(device, amp=True)),
        "plain loop, fp32": (True, lambda: plain_loop(device, 1)),
    }
    for dtype in ("fp32", "bf16"):
        amp = dtype == "bf16"
        named[f"main.py, {dtype}, albumentations"] = (
            True,
            lambda amp=amp: training(device, amp, "albumentations", 3),
        )
        named[f"main.py, {dtype}, batched"] = (
            amp,
            lambda amp=amp: training(device, amp, "batched", 3),
        )
        named[f"step, {dtype}, plain forms"] = False, lambda amp=amp: step(device, amp, plain=True)
        named[f"step, {dtype}, fast forms"] = False, lambda amp=amp: step(device, amp)
        named[f"step, {dtype}, compiled"] = (
            False,
            lambda amp=amp: step(device, amp, compile_it=True),
        )
        named[f"evaluation, {dtype}, plain forms"] = (
            False,
            lambda amp=amp: evaluation(device, amp, plain=True),
        )
        named[f"evaluation, {dtype}, fast forms"] = amp, lambda amp=amp: evaluation(device, amp)
    for engine in ("albumentations", "batched"):
        named[f"augmentation, one core, {engine}"] = (
            True,
            lambda engine=engine: augmentation(engine),
        )
    return named


# --- several devices ----------------------------------------------------------------------------------------------

GRADIENT = 4 * 174_762  # bytes
# Assumed, not measured: bytes a second and seconds a message of the slowest link in the ring, and of one GPU the
# images a second and the seconds of a step without images (some two hundred kernels are launched one by one).
LINKS = {
    "NVLink, InfiniBand": (
        (200e9, 5e-6),
        (20e9, 10e-6),
    ),  # up to 8 GPUs in a machine; between machines
    "NVLink, 10 Gb Ethernet": ((200e9, 5e-6), (1.1e9, 50e-6)),
}
GPU_RATE, GPU_OVERHEAD, GPUS_A_MACHINE = 30_000, 2e-3, 8


def all_reduce_seconds(ranks: int, size: float, latency: float, bandwidth: float) -> float:
    """The time of a ring all-reduce of `size` bytes (Patarasuk and Yuan 2009, doi 10.1016/j.jpdc.2008.09.002): 2(n-1)
    messages of an n-th of it, one after the other, each after `latency` seconds at `bandwidth` bytes a second."""
    return 2 * (ranks - 1) * (latency + size / ranks / bandwidth)


def expected_table() -> str:
    """What more GPUs should bring at this network's size, as a Markdown table; nothing overlaps."""
    rows = ["| GPUs | links | exchange | 512 images in all: step, times one GPU | 512 images each: step, times one GPU |",
            "|---|---|---|---|---|"]  # fmt: skip
    alone = GPU_OVERHEAD + BATCH / GPU_RATE
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        for name, (inside, between) in LINKS.items():
            bandwidth, latency = inside if gpus <= GPUS_A_MACHINE else between
            exchange = all_reduce_seconds(gpus, GRADIENT, latency, bandwidth)
            strong = GPU_OVERHEAD + BATCH / gpus / GPU_RATE + exchange
            weak = alone + exchange
            links = "" if gpus == 1 else "NVLink" if gpus <= GPUS_A_MACHINE else name
            rows.append(f"| {gpus} | {links} | {exchange * 1e3:.2f} ms | {strong * 1e3:.1f} ms, {alone / strong:.1f} | "
                        f"{weak * 1e3:.1f} ms, {gpus * alone / weak:.1f} |")  # fmt: skip
            if gpus <= GPUS_A_MACHINE:
                break
    return "\n".join(rows)


def measure_ranks(group: Group, device: str) -> dict[str, float]:
    """A rank's part in measuring: images a second of all ranks, with 512 a batch in all and with 512 each, and seconds
    of one exchange of gradients."""
    ranks = group.ranks
    rates = {
        name: training(device, True, "batched", 3, ranks, batch_size, epochs=8)
        for name, batch_size in (("in all", BATCH), ("each", BATCH * ranks.world_size))
    }
    gradient = torch.zeros(GRADIENT // 4, device=start(Settings(device=device), ranks).device)
    return rates | {
        "exchange": _seconds(lambda: dist.all_reduce(gradient), 5, 50)
        if ranks.world_size > 1
        else 0.0
    }


def scaling(counts: list[int], device: str) -> str:
    """Measured figures of so many ranks on this machine, as a Markdown table.

    The efficiency is the rate by that of one rank; on GPUs, of which each rank has one more, by their number too.
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


# --- the command ------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """The command: exit code 0, 1 where a measurement failed, 2 with one line for a wrong request."""
    return run_on_ranks(lambda group: _bench(list(sys.argv[1:] if argv is None else argv), group))


def _bench(argv: list[str], group: Group) -> None:
    parser = Parser(
        description="Measures training speed against the plain loop and the machine's ceiling."
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round of the rows that decide: two minutes on two cores",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only measurements whose name holds this"
    )
    parser.add_argument(
        "--compiled", action="store_true", help="the rows with torch.compile too: a minute each"
    )
    parser.add_argument(
        "--ranks",
        metavar="N,N",
        help="instead, training by so many processes, and what is expected of GPUs",
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    device = (
        start(Settings(device=options.device)).device.type
        if options.device == "auto"
        else options.device
    )
    named = measurements(device)
    if options.child == "ranks":
        rates = measure_ranks(group, device)
        if group.ranks.rank == 0:
            print(json.dumps({"rate": rates, "memory": peak_memory()}))
        return
    if options.ranks:
        counts = [int(n) for n in options.ranks.split(",") if n.strip().isdecimal() and int(n) > 0]
        if len(counts) < len(options.ranks.split(",")):
            raise UserError(f"--ranks {options.ranks}: name numbers of processes, as in 1,2")
        print(
            f"measured here, bf16, batched engine, {device}, {available_cores()} cores:\n\n{scaling(counts, device)}\n"
        )
        print(f"expected of GPUs, by assumed figures:\n\n{expected_table()}")
        return
    if options.child:
        print(json.dumps({"rate": named[options.child][1](), "memory": peak_memory()}))
        return
    chosen = [
        name
        for name, (decides, _) in named.items()
        if options.only in name
        and (decides or not options.quick)
        and (options.compiled or "compiled" in options.only or "compiled" not in name)
    ]
    if not chosen:
        raise UserError(
            f"--only {options.only}: no measurement{' of --quick' * options.quick} has that in its name"
        )
    found: dict[str, list[dict]] = {name: [] for name in chosen}
    for round_ in range(1 if options.quick else 3):
        for name in (name for name in chosen if round_ == 0 or named[name][0]):
            print(f"\rround {round_ + 1}: {name:45}", end="", file=sys.stderr, flush=True)
            found[name].append(_in_child(name, device))
    print(f"\r{'':55}\r", end="", file=sys.stderr)
    figures = {
        name: {
            "rate": statistics.median(r["rate"] for r in runs),
            "memory": max(r["memory"] for r in runs),
        }
        for name, runs in found.items()
    }
    machine = start(Settings(device=device)).device_name
    print(
        f"{machine}, {available_cores()} cores, torch {torch.__version__}, python {platform.python_version()}\n"
    )
    print(table(figures))
    if options.json:
        content = json.dumps(
            {"machine": machine, "cores": available_cores(), "figures": figures}, indent=2
        )
        try:
            Path(options.json).write_text(content + "\n")
        except OSError as problem:
            raise UserError(
                f"--json {options.json}: cannot write it ({problem.strerror}); name another file"
            ) from None


def _in_child(name: str, device: str, launcher: Sequence[str] = ()) -> dict:
    command = [sys.executable, *launcher, __file__, "--child", name, "--device", device]
    # OpenBLAS kernels that a system may have pinned do not concern torch, but would slow numpy
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    child = subprocess.run(command, capture_output=True, text=True, env=clean)
    if child.returncode != 0:
        why = child.stderr.strip().splitlines() or [f"it ended with {child.returncode}"]
        raise RunError(f"the measurement {name!r} failed: {why[-1]}")
    return json.loads(child.stdout.splitlines()[-1])


def flops_per_image() -> float:
    """Multiplications and additions of a training step, per image: three times those of the forward pass."""
    with FlopCounterMode(display=False) as counter:
        use_plain_forms(CIFARNet()).eval()(torch.zeros(1, 3, 32, 32))
    return 3 * counter.get_total_flops()


def table(figures: dict[str, dict]) -> str:
    """The figures as a Markdown table: rates, ratios to the plain loop, shares of the matrix product's ceiling."""
    rows = [
        "| measured | rate | times the plain loop | share of ceiling | peak memory |",
        "|---|---|---|---|---|",
    ]
    plain = figures.get("plain loop, fp32", {}).get("rate")
    for name, figure in figures.items():
        rate, trains = figure["rate"], name.startswith(("plain", "main", "step"))
        shown = f"{rate / 1e9:,.0f} GFLOP/s" if name.startswith("matrix") else f"{rate:,.0f} img/s"
        ratio = f"{rate / plain:.1f}" if plain and trains else ""
        ceiling = figures.get(f"matrix product, {'bf16' if 'bf16' in name else 'fp32'}", {}).get(
            "rate"
        )
        share = f"{rate * flops_per_image() / ceiling:.0%}" if ceiling and trains else ""
        rows.append(
            f"| {name} | {shown} | {ratio} | {share} | {figure['memory'] / 2**30:.1f} GiB |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
