"""The first lines of a log: what the run is made of."""

import math

from cifarnet.core.log import RunLog
from cifarnet.core.machine import free_memory, versions
from cifarnet.core.threads import has_locks
from cifarnet.images.imageset import Splits, describe_classes
from cifarnet.networks.build import parameter_count
from cifarnet.networks.cost import multiply_adds, training_memory
from cifarnet.networks.scaling import enlarged_side
from cifarnet.settings import FLAGS, Settings, without_effect
from model import model_table
from train import Learner


def write_header(
    log: RunLog, learner: Learner, splits: Splits, workers: int, request: Settings
) -> None:
    """Logs settings, versions, device, images and network. `workers` is the number of processes
    that augment images. Settings of `request` that are not defaults come first."""
    settings, runtime = learner.settings, learner.runtime
    log.line(f"log, with all settings and layers: {log.path}")
    changed = {name for name, value in request.flags.items() if value != FLAGS[name].default}
    for write, title, names in (
        (log.line, "settings", changed),
        (log.detail, "defaults", FLAGS.keys() - changed),
    ):
        flags = (f"{name}={value}" for name, value in settings.flags.items() if name in names)
        write(f"{title}: {', '.join(flags)}")
    for words in without_effect(settings):
        log.line(f"warning: {words}")
    log.detail(f"versions: {', '.join(f'{name} {number}' for name, number in versions().items())}")
    log.line(
        f"device: {runtime.device} ({runtime.device_name}), {runtime.threads} threads, "
        f"{runtime.precision}, {workers} workers"
    )
    if runtime.note:
        log.line(runtime.note)
    if settings.data.num_workers is None and not has_locks():
        log.line("no workers: /dev/shm cannot be written, so this process augments the images")
    if workers > runtime.threads:
        log.line(
            f"warning: --num_workers {workers} is above the {runtime.threads} threads that this "
            f"process may use; more workers than these are no faster"
        )
    if runtime.world_size > 1:
        share = settings.training.batch_size // runtime.world_size
        log.line(
            f"ranks: {runtime.world_size}, each with that many threads and workers, and {share} "
            f"of the {settings.training.batch_size} images of a batch"
        )
    if runtime.keeps_memory:
        log.detail("memory: freed activations are kept for reuse; --no-keep_memory is slower")
    val = f", {len(splits.val)} validation" if splits.val is not None else ""
    mean, std = (" ".join(f"{x:.4f}" for x in values) for values in (splits.mean, splits.std))
    log.line(
        f"data: {splits.name}, {len(splits.train)} training{val}, {len(splits.test)} test images, "
        f"{len(splits.train.classes)} classes; mean {mean}, deviation {std}"
    )
    for words in describe_classes(splits.train):
        log.line(words)
    steps = math.ceil(len(splits.train) / settings.training.batch_size)
    log.line(f"steps: {steps} an epoch, {steps * settings.training.epochs:,} in all")
    if splits.val is None:
        freq = settings.evaluation.eval_freq
        when = {0: "at the end only", 1: "every epoch"}.get(freq, f"every {freq} epochs")
        log.line(f"selection: no validation images; the test set is evaluated {when}")
    log.block(model_table(learner.network, settings.data.image_size))
    count = parameter_count(learner.network)
    size = count * 4 / 2**20
    log.line(f"model: {count:,} trainable parameters, {size:.2f} MiB as float32")
    _say_cost(log, learner)


def _say_cost(log: RunLog, learner: Learner) -> None:
    """Logs what attention and scaling change, and what an image costs. Warns if the memory may not
    suffice. Speed is not predicted: the first epoch shows it."""
    settings, runtime, network = learner.settings, learner.runtime, learner.network
    side = settings.data.image_size
    if settings.network.attention != "none":
        weights = [p for name, p in network.named_parameters() if ".attention." in name]
        where = "all residual blocks"
        if settings.network.network == "cifarnet":
            where = f"blocks {', '.join(map(str, settings.network.attended))}"
        count = sum(p.numel() for p in weights)
        log.line(f"attention: {settings.network.attention} in {where}; {count:,} parameters")
    depth, width, enlarge = settings.network.scaling
    factors = {"depth": depth, "width": width}
    scaled = [f"{factor:.4g} times the {name}" for name, factor in factors.items() if factor != 1]
    if (larger := enlarged_side(side, enlarge)) != side:
        scaled.append(f"images of {side} pixels enlarged to {larger}")
    if scaled:
        log.line(f"scaling: {', '.join(scaled)}")
    log.line(f"cost: {multiply_adds(network, side) / 1e6:,.1f} million multiply-adds an image")
    free = free_memory(runtime.device)
    part = settings.training.batch_size // (settings.training.accumulate * runtime.world_size)
    needed = part * training_memory(network, max(settings.image_sizes), runtime.autocast)
    if free is not None and needed > free:
        log.line(
            f"warning: a step may need {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} "
            f"GiB are free; if it fails, raise --accumulate, or lower --batch_size or the scale"
        )
