"""What bench.py --inference measures: inference, in each form of a trained model."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from cifarnet.checkpoints.snapshots import load_trained
from cifarnet.checkpoints.trained import TrainedModel, check_classes
from cifarnet.core.device import init_process
from cifarnet.core.log import print_line
from cifarnet.images.imageset import ImageSet, Splits
from cifarnet.inference.classifier import TorchClassifier
from cifarnet.inference.readback import Classify, answers, top1
from cifarnet.settings.precision import PrecisionSettings
from cifarnet.training.compiling import compiled
from commands.bench_plain import noise
from commands.bench_tables import markdown
from commands.evaluation import evaluation_settings
from commands.export_formats import FORMATS, Source
from data import load_splits

BATCHES = {32: 8, 512: 1}  # how often each size of batch is timed in a round
SINGLES = 40  # pictures of a round, one at a time


def inference(
    options: argparse.Namespace, tell: Callable[[str], object]
) -> dict[str, dict[str, float | None]]:
    """The figures of each form of a trained model: speed, bytes of its file, and top-1.

    ONNX runs on the CPU. Without --data_dir there is no top-1, and random pixels calibrate int8,
    which does not change its speed. `tell` gets the name of each part before it starts.
    """
    device = init_process(PrecisionSettings(device=options.device)).device
    model = load_trained(options.pretrained)
    splits, test = _load_images(model, options.data_dir)

    def on_device(compile_it: bool = False, dtype: torch.dtype | None = None) -> Classify:
        classifier = TorchClassifier(model, amp=True).to(device)
        if compile_it:
            classifier.network = compiled(classifier.network, device)

        def classify(pixels: Tensor) -> Tensor:
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                return classifier.logits(pixels.to(device)).cpu()

        return classify

    forms = {"PyTorch, fp32": on_device(), "PyTorch, bf16": on_device(dtype=torch.bfloat16)}
    if options.compiled:
        forms["PyTorch, fp32, compiled"] = on_device(compile_it=True)
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("safetensors", "onnx", "onnx-int8"):
            path = Path(folder) / FORMATS[name].file
            FORMATS[name].write(Source(model, splits, None), path)
            sizes[name] = path.stat().st_size
            if name != "safetensors":
                forms[name] = FORMATS[name].read(path)
    pixels = noise(max(BATCHES), model.image_size).images
    speeds = measure_in_turns(forms, pixels, 1 if options.quick else 5, tell)
    figures = {}
    for name, classify in forms.items():
        share = None
        if test is not None:
            tell(f"top-1: {name}")
            share = top1(answers(classify, test.images), test.labels)
        size = sizes.get(name, sizes["safetensors"])
        figures[name] = speeds[name].figures() | {"bytes": size, "top1": share}
    return figures


def _load_images(model: TrainedModel, data_dir: str | None) -> tuple[Splits, ImageSet | None]:
    """The images in `data_dir`, and those to test on; without it noise, and None."""
    if data_dir is None:
        images = noise(max(BATCHES), model.image_size)
        return Splits("noise", images, None, images, model.mean, model.std), None
    splits = load_splits(evaluation_settings([model], {"data_dir": data_dir}).data, print_line)
    check_classes(model.classes, splits.test.classes)
    return splits, splits.test


@dataclass
class Speed:
    """The times of one classifier, in seconds per call."""

    single: list[float] = field(default_factory=list)  # one picture
    batch: dict[int, list[float]] = field(default_factory=lambda: {size: [] for size in BATCHES})

    def figures(self) -> dict[str, float]:
        """Median and 95th percentile of the seconds for one picture; images a second by batch."""
        rates = {f"batch_{n}": n / statistics.median(times) for n, times in self.batch.items()}
        late = statistics.quantiles(self.single, n=20, method="inclusive")[-1]
        return {"latency": statistics.median(self.single), "latency_95": late} | rates


@torch.inference_mode()
def measure_in_turns(
    classifiers: Mapping[str, Classify], pixels: Tensor, rounds: int, tell: Callable[[str], object]
) -> dict[str, Speed]:
    """Times each of `classifiers` on `pixels` uint8 [N,3,S,S], in each of the rounds.

    They take turns, because the speed of a machine drifts. The answers come back to the CPU within
    the time. N is the largest size in `BATCHES`. `tell` gets the name of each part before it
    starts.
    """
    speeds = {name: Speed() for name in classifiers}
    for round_ in range(rounds + 1):  # round 0 warms up: it does not count
        for name, classify in classifiers.items():
            tell(f"round {round_}: {name}")
            speed = Speed() if round_ == 0 else speeds[name]
            for index in range(SINGLES):
                speed.single.append(_seconds(classify, pixels[index : index + 1]))
            for size, repeats in BATCHES.items():
                for _ in range(repeats):
                    speed.batch[size].append(_seconds(classify, pixels[:size]))
    return speeds


def _seconds(classify: Classify, pixels: Tensor) -> float:
    started = time.perf_counter()
    classify(pixels).cpu()
    return time.perf_counter() - started


def inference_table(figures: dict[str, dict]) -> str:
    """The figures of `inference` as a Markdown table."""
    sizes = (f"{n} at a time" for n in BATCHES)
    heads = ("network", "one picture", "95th percentile", *sizes, "file", "top-1")
    rows = []
    for name, figure in figures.items():
        times = [f"{figure[key] * 1e3:.2f} ms" for key in ("latency", "latency_95")]
        rates = [f"{figure[key]:,.0f} img/s" for key in map("batch_{}".format, BATCHES)]
        top1 = "" if figure["top1"] is None else f"{figure['top1']:.2%}"
        rows.append([name, *times, *rates, f"{figure['bytes'] / 1e6:.2f} MB", top1])
    return markdown(heads, rows)
