"""What bench.py --inference measures: a trained model at work, in each of its forms."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cifarnet.checkpoints.load import load_trained
from cifarnet.checkpoints.trained import TrainedModel, check_classes
from cifarnet.core.device import init_process
from cifarnet.core.log import print_line
from cifarnet.images.imageset import ImageSet, Splits
from cifarnet.inference.classifier import TorchClassifier
from cifarnet.inference.readback import Classify, answers, top1
from cifarnet.inference.speed import BATCHES, measure
from cifarnet.settings.precision import PrecisionSettings
from cifarnet.training.compiling import compiled
from commands.bench_plain import random_images
from commands.evaluation import evaluation_settings
from commands.export_formats import FORMATS, Source
from data import load_splits


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
    pixels = random_images(max(BATCHES), model.image_size).images
    speeds = measure(forms, pixels, 1 if options.quick else 5, tell)
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
        noise = random_images(max(BATCHES), model.image_size)
        return Splits("noise", noise, None, noise, model.mean, model.std), None
    splits = load_splits(evaluation_settings([model], {"data_dir": data_dir}).data, print_line)
    check_classes(model.classes, splits.test.classes)
    return splits, splits.test


def inference_table(figures: dict[str, dict]) -> str:
    """The figures of `inference` as a Markdown table."""
    heads = ["network", "one picture", "95th percentile", *(f"{n} at a time" for n in BATCHES)]
    rows = [f"| {' | '.join(heads)} | file | top-1 |", "|---" * (len(heads) + 2) + "|"]
    for name, figure in figures.items():
        times = [f"{figure[key] * 1e3:.2f} ms" for key in ("latency", "latency_95")]
        rates = [f"{figure[key]:,.0f} img/s" for key in map("batch_{}".format, BATCHES)]
        top1 = "" if figure["top1"] is None else f"{figure['top1']:.2%}"
        cells = [name, *times, *rates, f"{figure['bytes'] / 1e6:.2f} MB", top1]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
