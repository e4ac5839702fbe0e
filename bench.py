"""Measures speed on this machine: `python bench.py [--inference] [--json FILE]`.

Of training, it compares main.py with a plain loop and with the ceiling, the machine's matrix
products. Each measurement runs in its own process, because the allocator's setting belongs to the
process. The processes take turns for three rounds, because a machine's speed drifts; the table
shows medians. Rows that explain rather than decide run in the first round only, and not with
--quick.

bench_training.py and bench_inference.py hold the measurements. The flags are read before torch is
imported.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench_inference import inference, inference_table
from bench_training import (
    NETWORKS_BATCH,
    flops_per_image,
    measure_ranks,
    measurements,
    network_costs,
    profile,
)
from cifarnet.checkpoints.places import find_trained
from cifarnet.core.commandline import Parser, check_package, path_argument, print_error, run_command
from cifarnet.core.errors import RunError, UserError
from cifarnet.core.files import naming_failures
from cifarnet.settings.precision import PrecisionSettings
from formats import ONNX


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
    from cifarnet.core.device import available_cores, init_process, peak_memory

    device = options.device
    if device == "auto":
        device = init_process(PrecisionSettings()).device.type
    if options.profile:
        print(profile(device))
        return
    if options.inference:
        figures = inference(options, _progress)
        _progress("")
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

    from cifarnet.core.device import available_cores, init_process

    machine, cores = init_process(PrecisionSettings(device=device)).device_name, available_cores()
    python = platform.python_version()
    print(f"{machine}, {cores} cores, torch {torch.__version__}, python {python}\n")
    print(shown)
    if path:
        content = {"machine": machine, "cores": cores, "figures": figures}
        with naming_failures("--json", Path(path)):
            Path(path).write_text(json.dumps(content, indent=2) + "\n")


# --- tables ---


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


if __name__ == "__main__":
    sys.exit(main())
