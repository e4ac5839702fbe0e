"""Every choice of a flag is an entry of its table, and every entry is a choice."""

from cifarnet.networks.attention import ATTENTION
from cifarnet.networks.build import NETWORKS
from cifarnet.settings import FLAGS


def choices(flag: str, *without_entry: str) -> set[str]:
    """The choices of `flag`; `without_entry` are those that need none."""
    every = set(FLAGS[flag].metadata["choices"])
    assert every >= set(without_entry)
    return every - set(without_entry)


def test_networks():
    assert choices("network") == set(NETWORKS)


def test_attention():
    assert choices("attention", "none") == set(ATTENTION)
