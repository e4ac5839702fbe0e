"""Policies for tests of augmentation."""

from cifarnet.augment.policy import Policy, build_policy
from cifarnet.core.settings import Settings


def policy_of(augment: str, **settings: object) -> Policy:
    """The policy of --augment, with probability 0.5 of each step beyond light."""
    return build_policy(Settings(augment=augment, **{"augment_p": 0.5, **settings}))
