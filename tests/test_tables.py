"""Every choice of a flag is an entry of its table, and every entry is a choice."""

from cifarnet.augment.published import PUBLISHED
from cifarnet.augment.step import BORDERS
from cifarnet.export.names import EXPORT_NAMES
from cifarnet.networks.attention import ATTENTION
from cifarnet.networks.build import NETWORKS
from cifarnet.settings import FLAGS
from cifarnet.training.objective import CLASS_WEIGHTS
from cifarnet.training.optimizers import OPTIMIZERS
from cifarnet.training.schedule import SCHEDULES
from commands.export_formats import FORMATS
from data import DATASETS, ENGINES


def choices(flag: str, *without_entry: str) -> set[str]:
    """The choices of `flag`; `without_entry` are those that need none."""
    every = set(FLAGS[flag].metadata["choices"])
    assert every >= set(without_entry)
    return every - set(without_entry)


def test_networks():
    assert choices("network") == set(NETWORKS)


def test_attention():
    assert choices("attention", "none") == set(ATTENTION)


def test_data_sets():
    assert choices("dataset") == set(DATASETS)


def test_augmentation():
    assert choices("augment_engine") == set(ENGINES)
    assert choices("border") == set(BORDERS)
    assert choices("auto_augment", "none") == set(PUBLISHED)


def test_training():
    assert choices("optimizer") == set(OPTIMIZERS)
    assert choices("schedule") == set(SCHEDULES)
    assert choices("class_weights") == set(CLASS_WEIGHTS)


def test_formats():
    assert list(FORMATS) == list(EXPORT_NAMES)
