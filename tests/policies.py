"""Policies for tests of augmentation."""

from cifarnet.augment.policy import Policy, build_policy
from cifarnet.settings.augmentation import AugmentationSettings


def policy_of(augment: str, image_size: int = 32, **settings: object) -> Policy:
    """The policy of --augment, with probability 0.5 of each step beyond light."""
    chosen = AugmentationSettings(augment=augment, **{"augment_p": 0.5, **settings})
    return build_policy(chosen, image_size)
