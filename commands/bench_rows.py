"""The rows of bench.py: their names, what each measures, and which of them the flags choose.
bench.py checks the names before it imports torch."""

import argparse
from typing import Any, NamedTuple

from cifarnet.core.errors import UserError
from cifarnet.core.late import LateModule
from cifarnet.settings import FLAGS

bench_training = LateModule("commands.bench_training")

NETWORKS: dict[str, dict[str, Any]] = {  # the settings of each row of --networks
    "published": {},
    "lite": {"network": "lite"},
    **{name: {"attention": name} for name in FLAGS["attention"].metadata["choices"][1:]},
    **{f"compound scale {steps}": {"compound_scale": steps} for steps in (1, 2)},
}
NETWORKS_BATCH = 128  # images: the largest network needs four times the memory of the published


class Measurement(NamedTuple):
    """A row of the table: a function of bench_training.py, which returns its rate."""

    function: str
    options: dict[str, Any]
    is_main: bool = True  # measured in each round, and with --quick; else in the first round only

    def measure(self, device: str) -> float:
        """The rate on `device`, or on the one in `options`."""
        return getattr(bench_training, self.function)(**{"device": device} | self.options)


def _of_dtype(dtype: str) -> dict[str, Measurement]:
    amp = {"amp": dtype == "bf16"}
    plain = amp | {"plain": True}
    return {
        f"main.py, {dtype}, albumentations": Measurement(
            "training", amp | {"engine": "albumentations"}
        ),
        f"main.py, {dtype}, batched": Measurement("training", amp | {"engine": "batched"}),
        f"step, {dtype}, plain forms": Measurement("step", plain, is_main=False),
        f"step, {dtype}, fast forms": Measurement("step", amp, is_main=False),
        f"step, {dtype}, compiled": Measurement("step", amp | {"compile": True}, is_main=False),
        f"evaluation, {dtype}, plain forms": Measurement("evaluation", plain, is_main=False),
        f"evaluation, {dtype}, fast forms": Measurement("evaluation", amp),
    }


MEASUREMENTS: dict[str, Measurement] = {  # by name, in the order of the table
    "matrix product, fp32": Measurement("matmul", {"amp": False}),
    "matrix product, bf16": Measurement("matmul", {"amp": True}),
    "plain loop, fp32": Measurement("plain_loop", {}),
    **_of_dtype("fp32"),
    **_of_dtype("bf16"),
    **{
        f"augmentation, one core, {engine}": Measurement(
            "augmentation", {"device": "cpu", "engine": engine}
        )
        for engine in ("albumentations", "batched")
    },
    **{
        f"network, {name}": Measurement("step", {"batch_size": NETWORKS_BATCH} | flags)
        for name, flags in NETWORKS.items()
    },
}


def chosen_rows(options: argparse.Namespace) -> list[str]:
    """The names of the measurements that the flags ask for. Raises `UserError` for none."""
    names = [
        name
        for name, measurement in MEASUREMENTS.items()
        if options.only in name
        and options.networks == name.startswith("network, ")
        and (measurement.is_main or not options.quick)
        and (options.compiled or "compiled" in options.only or "compiled" not in name)
    ]
    if not names:
        of_quick = " of --quick" if options.quick else ""
        raise UserError(f"--only {options.only}: no measurement{of_quick} has that in its name")
    return names
