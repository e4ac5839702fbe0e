import dataclasses
import re
from pathlib import Path

import pytest

from config import GROUPS, Interval, TrainConfig, UserError, config_from_dict, flags_table, parse_config

FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}


def parse(*argv):
    return parse_config(argv, "a test")


def test_the_published_recipe_is_the_default():
    config = parse()
    published = {
        "batch_size": 512, "epochs": 250, "lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9, "min_lr": 1e-6,
        "warmup_epochs": 0, "amp": False, "max_grad_norm": 1.0, "dropout": 0.1, "plot_training": True,
        "plot_evaluation": True, "plot_freq": 50, "save_best": False, "select": "last", "snapshot_freq": 5,
        "resume": None, "num_workers": None, "device": "auto", "seed": 42, "deterministic": False,
        "log_dir": "./log", "snapshot_dir": "./snapshots_complete", "plot_dir": "./plots_complete",
        "dataset": "cifar10", "data_dir": "./data", "val_fraction": 0, "augment": "full", "amp_dtype": "auto",
    }  # fmt: skip
    assert {name: getattr(config, name) for name in published} == published


@pytest.mark.parametrize(
    "argv",
    [
        ("--epochs", "0"), ("--epochs", "1.5"), ("--epochs", "-3"), ("--epochs", ""), ("--epochs", "9" * 401), ("--epochs",), ("--epochs", "9" * 401),
        ("--lr", "0"), ("--lr", "-0.1"), ("--lr", "nan"), ("--lr", "inf"), ("--lr", "1e999"), ("--lr", "fast"),
        ("--min_lr", "0.2"), ("--min_lr", "-1"), ("--min_lr", "nan"), ("--weight_decay", "-1"),
        ("--warmup_epochs", "250"), ("--warmup_epochs", "3", "--epochs", "3"), ("--warmup_epochs", "-1"),
        ("--dropout", "1.5"), ("--dropout", "1"), ("--dropout", "-0.1"), ("--momentum", "1"),
        ("--batch_size", "0"), ("--max_grad_norm", "-1"), ("--val_fraction", "1"), ("--val_fraction", "-0.1"),
        ("--limit_train", "-1"), ("--num_workers", "-1"), ("--plot_freq", "-1"), ("--snapshot_freq", "-1"),
        ("--seed", "-1"), ("--seed", str(2**32)), ("--dataset", "imagenet"), ("--device", "tpu"),
        ("--select", "worst"), ("--amp_dtype", "int8"), ("--augment", "more"), ("--log_dir", ""),
        ("--resume", ""), ("--no-such-flag",), ("--epoch", "3"), ("stray",), ("yes", "--amp"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_line_that_names_what_is_wrong(argv):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    message = str(caught.value)
    assert "\n" not in message
    assert argv[0].removeprefix("--") in message
    assert caught.value.exit_code == 2


def test_a_misspelt_flag_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"did you mean --epochs\?"):
        parse("--epohcs", "3")
    with pytest.raises(UserError, match="see --help"):
        parse("--epochs", "three")


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.type is bool])
def test_every_switch_has_both_forms(name):
    assert getattr(parse(f"--{name}"), name) is True
    assert getattr(parse(f"--no-{name}"), name) is False
    assert getattr(parse(f"--{name}", f"--no-{name}"), name) is False  # the last one wins


def test_help_shows_every_flag_in_its_group_with_its_default(capsys):
    with pytest.raises(SystemExit) as left:
        parse("--help")
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in FIELDS.items():
        assert f"--{name}" in text
        assert field.metadata["group"] in GROUPS
    assert all(f"{title}:" in text for title in GROUPS.values())
    assert text.count("(default: ") == len(FIELDS)


def test_settings_survive_a_snapshot():
    config = parse("--lr", "0.25", "--amp", "--num_workers", "3", "--dataset_name", "Ä $x$")
    assert config_from_dict(dataclasses.asdict(config)) == config
    assert config_from_dict({"epochs": 3, "a_flag_of_tomorrow": 1}) == parse("--epochs", "3")


@pytest.mark.parametrize("settings", [{"epochs": "3"}, {"amp": 1}, {"lr": None}, {"seed": True}, {"data_dir": 3}])
def test_settings_of_the_wrong_type_are_refused(settings):
    with pytest.raises(UserError):
        config_from_dict(settings)


@pytest.mark.parametrize(
    ("text", "inside", "outside"), [("[0, 1)", (0, 0.5), (1, -1e-9)), ("(0, inf)", (1e-300, 1e300), (0, -1))]
)
def test_intervals(text, inside, outside):
    assert all(x in Interval(text) for x in inside)
    assert not any(x in Interval(text) for x in outside)


def test_the_readme_shows_the_flags_as_they_are():
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- flags: .*? -->\n(.*?)\n<!-- end of flags -->", readme, re.DOTALL)
    assert shown[1] == flags_table(), "run `python config.py` and put its table into the README"
