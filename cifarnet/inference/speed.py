"""How fast classifiers answer, measured in turns: a machine's speed drifts."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cifarnet.inference.readback import Classify

BATCHES = {32: 8, 512: 1}  # how often each size of batch is timed in a round
SINGLES = 40  # pictures of a round, one at a time


@dataclass
class Speed:
    """The times of one classifier, in seconds per call."""

    single: list[float] = field(default_factory=list)  # one picture
    batch: dict[int, list[float]] = field(default_factory=lambda: {size: [] for size in BATCHES})

    def figures(self) -> dict[str, float]:
        """Median and 95th percentile of the seconds for one picture; images a second by batch."""
        rates = {f"batch_{n}": n / statistics.median(taken) for n, taken in self.batch.items()}
        late = statistics.quantiles(self.single, n=20, method="inclusive")[-1]
        return {"latency": statistics.median(self.single), "latency_95": late} | rates


@torch.inference_mode()
def measure(
    classifiers: Mapping[str, Classify], pixels: Tensor, rounds: int, tell: Callable[[str], object]
) -> dict[str, Speed]:
    """Times each of `classifiers` on `pixels` uint8 [N,3,S,S], in each of the rounds.

    The answers come back to the CPU within the time. N is the largest size in `BATCHES`. `tell` is
    told of each part before it starts.
    """
    speeds = {name: Speed() for name in classifiers}
    for round_ in range(rounds + 1):  # round 0 warms up: it does not count
        for name, classify in classifiers.items():
            tell(f"round {round_}: {name}")
            speed = Speed() if round_ == 0 else speeds[name]
            for index in range(SINGLES):
                speed.single.append(_seconds(classify, pixels[index : index + 1]))
            for size, times in BATCHES.items():
                for _ in range(times):
                    speed.batch[size].append(_seconds(classify, pixels[:size]))
    return speeds


def _seconds(classify: Classify, pixels: Tensor) -> float:
    started = time.perf_counter()
    classify(pixels).cpu()
    return time.perf_counter() - started
