"""Every choice of a flag is an entry of its table, and every entry is a choice."""

import re
from collections.abc import Collection
from pathlib import Path

import pytest
from optuna.samplers import RandomSampler, TPESampler

from cifarnet.augment.mixing import MIXES
from cifarnet.augment.policy import STEPS
from cifarnet.augment.published import PUBLISHED
from cifarnet.augment.step import BORDERS
from cifarnet.checkpoints.snapshots import WEIGHTS
from cifarnet.core.device import AMP_DTYPES
from cifarnet.export import page
from cifarnet.inference.class_maps import RECEPTIVE_FIELDS, WITHOUT_MAPS
from cifarnet.inference.classifier import VIEWS
from cifarnet.networks.attention import ATTENTION
from cifarnet.networks.build import NETWORKS
from cifarnet.settings import FLAGS
from cifarnet.settings.augmentation import AugmentationSettings
from cifarnet.settings.evaluation import TTA
from cifarnet.training.objective import CLASS_WEIGHTS, TEACHER_VIEWS
from cifarnet.training.optimizers import OPTIMIZERS
from cifarnet.training.plan import SCHEDULE_POSITIONS, SCHEDULES
from commands import sweep_file, sweep_study
from commands.export_formats import FORMATS
from data import DATASETS, ENGINES

TABLES = {
    "network": NETWORKS,
    "attention": {"none", *ATTENTION},
    "dataset": DATASETS,
    "amp_dtype": AMP_DTYPES,
    "augment": STEPS,
    "augment_engine": ENGINES,
    "border": BORDERS,
    "auto_augment": {"none", *PUBLISHED},
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "schedule_per": SCHEDULE_POSITIONS,
    "class_weights": CLASS_WEIGHTS,
    "evaluate": WEIGHTS,
    "teacher_tta": TEACHER_VIEWS,
}


def test_every_choice_has_a_table():
    choices = {name for name, flag in FLAGS.items() if flag.metadata["choices"]}
    others = {"device", "select"}  # device types of torch; which epoch
    assert choices == TABLES.keys() | others


@pytest.mark.parametrize(("flag", "table"), TABLES.items(), ids=TABLES)
def test_a_flag_and_its_table_agree(flag: str, table: Collection[str]):
    assert set(FLAGS[flag].metadata["choices"]) == set(table)


def test_each_network_says_what_its_maps_depend_on():
    assert {*RECEPTIVE_FIELDS, *WITHOUT_MAPS} == set(NETWORKS)


def test_views():
    assert set(VIEWS) == set(TTA)


def test_samplers():
    assert set(sweep_study.SAMPLERS) == set(sweep_file.SAMPLERS)
    assert sweep_study.SAMPLERS["tpe"] is TPESampler
    assert sweep_study.SAMPLERS["random"] is RandomSampler


def test_mixes():
    for kind in MIXES:
        assert AugmentationSettings(**{kind: 1.0}).mixes


def test_each_format_has_a_limit():
    for name, entry in FORMATS.items():
        assert entry.difference <= 1e-3 or entry.same >= 0.97, name


def test_the_pages_layers():
    """Python reads a page back with `KINDS`; the browser computes it with `LAYERS`."""
    script = (Path(page.__file__).parent / "page_network.js").read_text()
    table = re.search(r"^const LAYERS = \{\n(.*?)^\};", script, re.MULTILINE | re.DOTALL)[1]
    assert set(re.findall(r"^  (\w+)[(:]", table, re.MULTILINE)) == set(page.KINDS)
