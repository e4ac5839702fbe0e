"""What bench.py --inference measures: inference, in each form of the trained models."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cifarnet.checkpoints.paths import split_names
from cifarnet.checkpoints.snapshots import load_trained
from cifarnet.checkpoints.trained import TrainedModel, check_classes
from cifarnet.core.device import init_process
from cifarnet.core.log import print_line
from cifarnet.images.cifar import CIFAR, is_at_hand
from cifarnet.images.imageset import ImageSet, Splits
from cifarnet.inference.classifier import TorchClassifier
from cifarnet.inference.readback import Classify, compute_logits, top1
from cifarnet.settings.precision import PrecisionSettings
from cifarnet.training.compiling import compiled
from commands.bench_plain import noise
from commands.bench_tables import markdown
from commands.evaluation import evaluation_settings
from commands.export_formats import FORMATS, Source
from data import load_splits

BATCHES = {1: 40, 32: 8, 512: 1}  # how often each size of batch is timed in a round


class Form(NamedTuple):
    """A form of a trained model."""

    classify: Classify
    bytes: int  # of its file
    pixels: Tensor  # uint8 [N,3,S,S], to measure the speed
    test: ImageSet | None  # to measure the accuracy


def inference(
    options: argparse.Namespace, has_bf16: bool, tell: Callable[[str], object]
) -> dict[str, dict[str, float | None]]:
    """The figures of each form of the trained models: speed, bytes of its file, and top-1.

    ONNX runs on the CPU. Without --data_dir there is no top-1, and random pixels calibrate int8,
    which does not change its speed. `tell` gets the name of each part before it starts.
    """
    names = split_names(options.pretrained)
    forms = {}
    for name in names:
        for kind, form in _forms(name, options, has_bf16).items():
            forms[f"{name}, {kind}" if len(names) > 1 else kind] = form
    times = measure_in_turns(forms, 1 if options.quick else 5, tell)
    figures = {}
    for name, form in forms.items():
        share = None
        if form.test is not None:
            tell(f"top-1: {name}")
            share = top1(compute_logits(form.classify, form.test.images), form.test.labels)
        figures[name] = _speed(times[name]) | {"bytes": form.bytes, "top1": share}
    return figures


def _forms(name: str, options: argparse.Namespace, has_bf16: bool) -> dict[str, Form]:
    """The forms of the trained model `name`."""
    device = init_process(PrecisionSettings(device=options.device)).device
    model = load_trained(name)
    splits, test = _load_images(model, options.data_dir)

    def on_device(compile_it: bool = False, dtype: torch.dtype | None = None) -> Classify:
        classifier = TorchClassifier(model, amp=True).to(device)
        if compile_it:
            classifier.network = compiled(classifier.network, device)

        def classify(pixels: Tensor) -> Tensor:
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                return classifier.logits(pixels.to(device)).cpu()

        return classify

    in_torch = {"PyTorch, fp32": on_device()}
    if has_bf16:
        in_torch["PyTorch, bf16"] = on_device(dtype=torch.bfloat16)
    if options.compiled:
        in_torch["PyTorch, fp32, compiled"] = on_device(compile_it=True)
    pixels = noise(max(BATCHES), model.image_size).images
    forms = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("safetensors", "onnx", "onnx-int8"):
            path = Path(folder) / FORMATS[name].file
            FORMATS[name].write(Source(model, splits, None), path)
            read = in_torch if name == "safetensors" else {name: FORMATS[name].read(path)}
            for kind, classify in read.items():
                forms[kind] = Form(classify, path.stat().st_size, pixels, test)
    return forms


def _load_images(model: TrainedModel, data_dir: str | None) -> tuple[Splits, ImageSet | None]:
    """The images in `data_dir`, and those to test on; without it noise, and None."""
    if data_dir is None:
        images = noise(max(BATCHES), model.image_size)
        return Splits("noise", images, None, images, model.mean, model.std), None
    of_training = model.origin.settings.get("dataset")
    at_hand = [name for name, which in CIFAR.items() if is_at_hand(which, Path(data_dir))]
    dataset = of_training if of_training in at_hand else (at_hand or ["folder"])[0]
    flags = {"dataset": dataset, "data_dir": data_dir}
    splits = load_splits(evaluation_settings([model], flags).data, print_line, model.classes)
    check_classes(model.classes, splits.test.classes)
    if not len(splits.train):
        print_line("there are no training images: the test images calibrate int8")
        splits = replace(splits, train=splits.test)
    return splits, splits.test


def _speed(times: Mapping[int, Sequence[float]]) -> dict[str, float]:
    """Median and 95th percentile of the seconds for one image; images a second by batch."""
    rates = {f"batch_{n}": n / statistics.median(each) for n, each in times.items() if n > 1}
    late = statistics.quantiles(times[1], n=20, method="inclusive")[-1]
    return {"latency": statistics.median(times[1]), "latency_95": late} | rates


@torch.inference_mode()
def measure_in_turns(
    forms: Mapping[str, Form], rounds: int, tell: Callable[[str], object]
) -> dict[str, dict[int, list[float]]]:
    """The seconds of each call of `forms`, by size of batch.

    They take turns in each of the rounds, because the speed of a machine drifts. The answers come
    back to the CPU within the time. `tell` gets the name of each part before it starts.
    """
    times = {name: {size: [] for size in BATCHES} for name in forms}
    for round_ in range(rounds + 1):
        for name, form in forms.items():
            tell(f"round {round_}: {name}")
            for size, repeats in BATCHES.items():
                seconds = [_seconds(form.classify, form.pixels[:size]) for _ in range(repeats)]
                times[name][size] += seconds if round_ else []  # round 0 warms up
    return times


def _seconds(classify: Classify, pixels: Tensor) -> float:
    started = time.perf_counter()
    classify(pixels).cpu()
    return time.perf_counter() - started


def inference_table(figures: dict[str, dict]) -> str:
    """The figures of `inference` as a Markdown table."""
    batches = [size for size in BATCHES if size > 1]
    sizes = (f"{n} at a time" for n in batches)
    heads = ("network", "one image", "95th percentile", *sizes, "file", "top-1")
    rows = []
    for name, figure in figures.items():
        times = [f"{figure[key] * 1e3:.2f} ms" for key in ("latency", "latency_95")]
        rates = [f"{figure[key]:,.0f} img/s" for key in map("batch_{}".format, batches)]
        top1 = "" if figure["top1"] is None else f"{figure['top1']:.2%}"
        rows.append([name, *times, *rates, f"{figure['bytes'] / 1e6:.2f} MB", top1])
    return markdown(heads, rows)
