import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from support.augmentation import CPU, MEAN, policy_of, versions

from cifarnet.augment.per_image import PerImageEngine


def test_decisions_are_independent_of_one_another_and_of_the_neighbours():
    """This image shows whether it was mirrored, holed or jittered, each apart from the others."""
    image = np.zeros((3, 32, 32), dtype=np.uint8)
    image[:, :, :3] = 250
    policy = policy_of("full", pad=0, affine_p=0.0, hole=8, jitter="0.2,0,0,0")
    images = versions(policy, image, 4000)
    mirrored = images[:, 0, :, -3:].max(axis=(1, 2)) > images[:, 0, :, :3].max(axis=(1, 2))
    holed = images[:, 0, :, 3:-3].any(axis=(1, 2))
    jittered = images.max(axis=(1, 2, 3)) != 250
    decisions = np.stack([mirrored, holed, jittered]).astype(float)
    assert np.abs(decisions.mean(axis=1) - 0.5).max() < 0.06
    assert np.abs(np.corrcoef(decisions) - np.eye(3)).max() < 0.06
    for decision in decisions:  # and from one image to the next
        assert abs(np.corrcoef(decision[1:], decision[:-1])[0, 1]) < 0.06


def test_the_policy_none_changes_nothing():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    copies = PerImageEngine(policy_of("none"), MEAN, CPU)(images, 1)
    assert (copies == images).all()
    assert not np.shares_memory(copies, images)


def test_building_the_engine_asks_no_server():
    code = (
        "import socket\n"
        "def refuse(*args, **kwargs): print('ASKED'); raise OSError\n"
        "socket.getaddrinfo = socket.create_connection = refuse\n"
        "import torch\n"
        "from cifarnet.augment.per_image import PerImageEngine\n"
        "from cifarnet.augment.policy import build_policy\n"
        "from cifarnet.settings.augmentation import AugmentationSettings\n"
        "policy = build_policy(AugmentationSettings(), 32)\n"
        "PerImageEngine(policy, (0.5, 0.5, 0.5), torch.device('cpu'))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout) == (0, ""), run.stderr
