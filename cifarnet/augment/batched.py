"""The policy on whole batches, on the device, with tensor operations."""

import numpy as np
import torch
from torch import Tensor

from cifarnet.augment.policy import APPLIED, Draws, Policy
from cifarnet.core.device import to_device
from cifarnet.images.imageset import SIZE


class BatchedEngine:
    """Applies a `Policy` to whole batches on `device`. `mean` holds the channel means of the data
    set, in [0, 1]: the colour of padding and holes.

    For the same draws the pixels equal those of `PerImageEngine`, within the tolerances of
    tests/augment: both round to 8 bits between two steps.
    """

    def __init__(
        self, policy: Policy, mean: tuple[float, float, float], device: torch.device
    ) -> None:
        self.policy, self.device = policy, device
        colour = torch.tensor([round(255.0 * m) for m in mean], device=device)
        self.mean = colour.float().view(1, 3, 1, 1)
        # `chunk` images of 32x32 are worked on at a time, `block` images are augmented together. On
        # the CPU a chunk fits the cache as float32 (128 images were faster than 64). Elsewhere a
        # chunk is so large that launching the 200 or so operations does not limit the speed.
        self.chunk, self.block = (128, 512) if device.type == "cpu" else (8192, 8192)

    def __call__(self, images: np.ndarray, *key: int) -> np.ndarray:
        """Returns augmented copies of `images`, both uint8 [B,3,S,S]; `key` is the seed."""
        draws = self.policy.draw(len(images), *key)
        return self.apply(torch.from_numpy(images).to(self.device), draws).cpu().numpy()

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Returns copies of `images`, uint8 [B,3,S,S] on the device, changed as `draws` says."""
        images = images.clone(memory_format=torch.contiguous_format)
        chunk = max(1, self.chunk * SIZE**2 // images.shape[-1] ** 2)
        for step in self.policy.steps:
            drawn = draws[step.name]
            chosen = drawn[APPLIED].nonzero().squeeze(1)
            for part in chosen.split(chunk) if len(chosen) else ():
                drawn_here = {name: values[part] for name, values in drawn.items()}
                part = to_device(part, images.device)
                changed = step.for_batch(images.index_select(0, part), drawn_here, self.mean)
                # As int64 eight pixels are copied at a time: four times as fast.
                images.view(torch.int64).index_copy_(0, part, changed.view(torch.int64))
        return images
