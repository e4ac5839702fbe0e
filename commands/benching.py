"""Runs the measurements of bench.py, each in a process of its own, and prints the figures.

The allocator's setting belongs to a process. The processes take turns for three rounds, because the
speed of a machine drifts; the table shows medians.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from cifarnet.core.device import Runtime, init_process
from cifarnet.core.errors import RunError, UserError
from cifarnet.core.files import write_named
from cifarnet.core.machine import peak_memory
from cifarnet.core.threads import available_cores
from cifarnet.settings.precision import PrecisionSettings
from commands.bench_inference import inference, inference_table
from commands.bench_rows import MEASUREMENTS, NETWORKS
from commands.bench_tables import networks_table, ranks_table, table
from commands.bench_training import flops_per_image, network_costs, profile

COMMAND = Path(__file__).parents[1] / "bench.py"
ROUNDS = 3


def run_bench(options: argparse.Namespace) -> None:
    """Runs bench.py after its flags are read. Raises `UserError` and `RunError`."""
    runtime = init_process(PrecisionSettings(device=options.device, amp=True))
    device, has_bf16 = runtime.device.type, runtime.amp_dtype is torch.bfloat16
    if options.profile:
        print(profile(device))
    elif options.inference:
        figures = inference(options, has_bf16, _progress)
        _progress("")
        _print_figures(figures, inference_table(figures), runtime, options.json)
    elif options.counts:
        where = f"{runtime.computed_on}, batched engine, {available_cores()} cores"
        print(f"measured here, {where}:\n")
        print(ranks_table({count: _of_ranks(count, device) for count in options.counts}, device))
    else:
        names = [name for name in options.names if has_bf16 or "bf16" not in name]
        if not names:
            raise UserError(f"--only {options.only}: this {device} has no bf16 instructions")
        if names != options.names:
            print(f"without the rows in bf16: this {device} has no bf16 instructions\n")
        figures = measure(names, device, 1 if options.quick else ROUNDS)
        if options.networks:
            for name, figure in figures.items():
                figure |= network_costs(**NETWORKS[name.removeprefix("network, ")])
            text = networks_table(figures)
        else:
            text = table(figures, flops_per_image())
        _print_figures(figures, text, runtime, options.json)


def measure(names: Sequence[str], device: str, rounds: int) -> dict[str, dict[str, float]]:
    """The median rate and the largest peak memory of each measurement. Raises `RunError`. Rows that
    are not main rows are measured in the first round only."""
    runs: dict[str, list[dict]] = {name: [] for name in names}
    for round_ in range(rounds):
        for name in names:
            if round_ == 0 or MEASUREMENTS[name].is_main:
                _progress(f"round {round_ + 1}: {name}")
                runs[name].append(_in_child(name, device))
    _progress("")
    return {
        name: {
            "rate": statistics.median(run["rate"] for run in of_name),
            "memory": max(run["memory"] for run in of_name),
        }
        for name, of_name in runs.items()
    }


def end_with_parent() -> None:
    """Ends this process, in a thread of its own, when its standard input ends: see `_in_child`."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_child(name: str, device: str) -> None:
    """Measures `name` in this process, and prints its rate and peak memory as JSON."""
    measurement = MEASUREMENTS[name]
    rate = measurement.measure(device)
    memory = peak_memory(measurement.options.get("device", device))
    print(json.dumps({"rate": rate, "memory": memory}))


def _of_ranks(count: int, device: str) -> dict[str, float]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    return _in_child("ranks", device, launcher)["rate"]


def _progress(text: str) -> None:
    """Shows `text` in place of the text before, on the terminal."""
    print(f"\r{text:55}" if text else f"\r{'':55}\r", end="", file=sys.stderr, flush=True)


def _in_child(name: str, device: str, launcher: Sequence[str] = ()) -> dict:
    """Measures `name` in a process of its own: its rate and peak memory. Raises `RunError`."""
    command = [sys.executable, *launcher, str(COMMAND), "--child", name, "--device", device]
    # A system may pin kernels of OpenBLAS. torch does not use it; numpy would be slower.
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")
    }
    reader, writer = os.pipe()  # a child ends when its parent no longer holds `writer`
    try:
        child = subprocess.run(
            command, stdin=reader, capture_output=True, text=True, env=environment
        )
    finally:
        os.close(reader)
        os.close(writer)
    if child.returncode != 0:
        why = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
        raise RunError(f"the measurement {name!r} failed: {why[-1]}")
    return json.loads(child.stdout.splitlines()[-1])


def _print_figures(
    figures: dict[str, dict], shown: str, runtime: Runtime, path: str | None
) -> None:
    """Prints the table `shown`, and writes the figures to `path` as JSON. Raises `RunError`."""
    machine, cores, python = runtime.device_name, available_cores(), platform.python_version()
    print(f"{machine}, {cores} cores, torch {torch.__version__}, python {python}\n")
    print(shown)
    if path:
        content = {"machine": machine, "cores": cores, "figures": figures}
        write_named(path, "--json", json.dumps(content, indent=2) + "\n")
