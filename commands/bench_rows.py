"""The rows of bench.py: their names, what each measures, and which of them the flags choose.

bench.py checks the names before it imports torch.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

from cifarnet.core.errors import UserError
from cifarnet.core.late import LateModule
from cifarnet.settings import FLAGS

bench_plain = LateModule("commands.bench_plain")
bench_training = LateModule("commands.bench_training")

NETWORKS: dict[str, dict[str, Any]] = {  # the settings of each row of --networks
    "published": {},
    **{name: {"attention": name} for name in FLAGS["attention"].metadata["choices"][1:]},
    **{f"compound scale {steps}": {"compound_scale": steps} for steps in (1, 2)},
}
NETWORKS_BATCH = 128  # images: the largest network needs four times the memory of the published


class Measurement(NamedTuple):
    """A row of the table: `measure(device)` returns its rate."""

    measure: Callable[[str], float]
    decides: bool = True  # measured in each round, and with --quick; else in the first round only


def _steps(device: str) -> int:
    """The steps of an epoch, so that it takes a second at least."""
    return 50 if device == "cuda" else 3


def _of_dtype(dtype: str) -> dict[str, Measurement]:
    amp = dtype == "bf16"

    def loop(engine: str) -> Callable[[str], float]:
        return lambda device: bench_training.training(device, amp, engine, _steps(device))

    def one(**how: Any) -> Measurement:
        return Measurement(lambda device: bench_training.step(device, amp, **how), decides=False)

    def passes(decides: bool, **how: Any) -> Measurement:
        return Measurement(lambda device: bench_training.evaluation(device, amp, **how), decides)

    return {
        f"main.py, {dtype}, albumentations": Measurement(loop("albumentations")),
        f"main.py, {dtype}, batched": Measurement(loop("batched"), decides=amp),
        f"step, {dtype}, plain forms": one(plain=True),
        f"step, {dtype}, fast forms": one(),
        f"step, {dtype}, compiled": one(compile_it=True),
        f"evaluation, {dtype}, plain forms": passes(decides=False, plain=True),
        f"evaluation, {dtype}, fast forms": passes(decides=amp),
    }


def _product(amp: bool) -> Measurement:
    return Measurement(lambda device: bench_training.matmul(device, amp))


def _augmentation(engine: str) -> Measurement:
    return Measurement(lambda device: bench_training.augmentation(engine))


def _network(flags: dict[str, Any]) -> Measurement:
    return Measurement(
        lambda device: bench_training.step(device, False, batch=NETWORKS_BATCH, **flags)
    )


MEASUREMENTS: dict[str, Measurement] = {  # by name, in the order of the table
    "matrix product, fp32": _product(amp=False),
    "matrix product, bf16": _product(amp=True),
    "plain loop, fp32": Measurement(
        lambda device: bench_plain.plain_loop(device, _steps(device) // 3)
    ),
    **_of_dtype("fp32"),
    **_of_dtype("bf16"),
    "augmentation, one core, albumentations": _augmentation("albumentations"),
    "augmentation, one core, batched": _augmentation("batched"),
    **{f"network, {name}": _network(flags) for name, flags in NETWORKS.items()},
}


def chosen_rows(options: argparse.Namespace) -> list[str]:
    """The names of the measurements that the flags ask for. Raises `UserError` for none."""
    names = [
        name
        for name, measurement in MEASUREMENTS.items()
        if options.only in name
        and options.networks == name.startswith("network, ")
        and (measurement.decides or not options.quick)
        and (options.compiled or "compiled" in options.only or "compiled" not in name)
    ]
    if not names:
        of_quick = " of --quick" if options.quick else ""
        raise UserError(f"--only {options.only}: no measurement{of_quick} has that in its name")
    return names
