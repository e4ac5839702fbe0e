import dataclasses
import math
import re
import typing
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cifarnet.core.commandline import flags_table, parse_settings, read_recipe
from cifarnet.core.errors import UserError, printable
from cifarnet.core.settings import (
    GROUPS,
    Interval,
    Settings,
    changed_settings,
    settings_from_dict,
    without_effect,
)

FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


def parse(*argv):
    return parse_settings(argv, "a test")


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
    ("argv", "idle"),
    [
        ((), ""),
        (("--augment", "light", "--augment_p", "0.2", "--hole_p", "0"), "augment_p hole_p"),
        (("--augment_p", "0.2", "--hole_p", "0"), ""),
        (("--muon_lr", "0.2", "--muon_momentum", "0.9"), "muon_lr muon_momentum"),
        (("--muon_lr", "0.2", "--optimizer", "muon"), ""),
        (("--amp_dtype", "bf16"), "amp_dtype"),
        (("--amp_dtype", "bf16", "--amp"), ""),
        (
            ("--num_workers", "2", "--augment_engine", "batched", "--skip_bad_images"),
            "num_workers skip_bad_images",
        ),
        (("--dataset", "folder", "--skip_bad_images", "--data_url", "http://x"), "data_url"),
        (("--snapshot_freq", "0", "--keep_snapshots", "2", "--plot_freq", "1"), "keep_snapshots"),
        (
            ("--no-plot_training", "--plot_freq", "1", "--resume_override"),
            "plot_freq resume_override",
        ),
        (
            ("--no-decay_norms", "--weight_decay", "0", "--resume", "auto", "--resume_override"),
            "decay_norms",
        ),
    ],
)
def test_flags_that_do_nothing_are_named(argv, idle):
    assert [words.split()[0] for words in without_effect(parse(*argv))] == [
        f"--{name}" for name in idle.split()
    ]


@pytest.mark.parametrize(
    "argv",
    [
        ("--epochs", "0"), ("--epochs", "1.5"), ("--epochs", "-3"), ("--epochs", ""), ("--epochs", "9" * 401), ("--epochs",),
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
    assert settings_from_dict(dataclasses.asdict(config)) == config
    assert settings_from_dict({"epochs": 3, "a_flag_of_tomorrow": 1}) == parse("--epochs", "3")


@pytest.mark.parametrize(
    "settings", [{"epochs": "3"}, {"amp": 1}, {"lr": None}, {"seed": True}, {"data_dir": 3}]
)
def test_settings_of_the_wrong_type_are_refused(settings):
    with pytest.raises(UserError):
        settings_from_dict(settings)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [("[0, 1)", (0, 0.5), (1, -1e-9)), ("(0, inf)", (1e-300, 1e300), (0, -1))],
)
def test_intervals(text, inside, outside):
    assert all(x in Interval(text) for x in inside)
    assert not any(x in Interval(text) for x in outside)


def test_what_a_resumed_run_may_change():
    before = parse("--epochs", "10")
    assert changed_settings(before, before) == ([], [])
    now = dataclasses.replace(
        before, num_workers=2, plot_dir="p", keep_snapshots=3, epochs=12, lr=0.2, amp=True
    )
    may, may_not = changed_settings(before, now)
    assert may == [
        "num_workers None -> 2",
        "epochs 10 -> 12",
        "keep_snapshots 0 -> 3",
        "plot_dir ./plots_complete -> p",
    ]
    assert may_not == ["lr 0.1 -> 0.2", "amp False -> True"]
    assert changed_settings(now, before)[1][0] == "epochs 12 -> 10"


def test_only_what_leaves_the_result_alone_may_change():
    free = {name for name, field in FIELDS.items() if field.metadata["on_resume"] == "change"}
    assert free == {
        "data_dir", "data_url", "dataset_name", "num_workers", "preview_augment", "keep_memory", "select",
        "plot_training", "plot_evaluation", "plot_freq", "save_best", "snapshot_freq", "keep_snapshots", "resume",
        "resume_override", "log_dir", "snapshot_dir", "plot_dir", "recipe",
    }  # fmt: skip
    assert {name for name, field in FIELDS.items() if field.metadata["on_resume"] == "raise"} == {
        "epochs"
    }


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_presets(tmp_path):
    recipe = tmp_path / "short.toml"
    recipe.write_text('epochs = 12\nlr = 1\namp = false\naugment = "light"\n')
    config = parse_settings(
        ["--epochs", "3", "--recipe", str(recipe)],
        "test",
        ("--amp", "--save_best", "--epochs", "9"),
    )
    assert config == Settings(recipe=str(recipe), epochs=3, lr=1, augment="light", save_best=True)
    assert type(config.lr) is float  # as from the command line: optimizers tell the two apart


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch = 3", "did you mean epochs?"),
        ("zzz = 3", "no flag 'zzz'"),
        ("recipe = 'other.toml'", "no flag 'recipe'"),
        ("epochs = '3'", "--epochs '3' is not of type int"),
        ("lr = -1.0", "--lr -1 is out of range"),
        ("[recipe]\nepochs = 3", "no flag 'recipe'"),
        ("epochs", "is no TOML file"),
        ("epochs = 3\nepochs = 4", "is no TOML file"),
        (f"epochs = {'9' * 5000}", "is no TOML file"),
        (f"epochs = {'[' * 5000}", "is no TOML file"),
    ],
)
def test_a_wrong_recipe_is_named_with_what_is_wrong(tmp_path, text, said):
    recipe = tmp_path / "wrong.toml"
    recipe.write_text(text)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        parse("--recipe", str(recipe))
    assert str(recipe) in str(caught.value)


def test_images_evaluated_at_a_time_are_no_more_than_a_part_of_a_batch():
    assert Settings(batch_size=512, accumulate=4).eval_batch_size == 128
    assert Settings(batch_size=3, accumulate=4).eval_batch_size == 1


def test_what_a_recipe_names_can_be_switched_off(tmp_path):
    recipe = tmp_path / "taught.toml"
    recipe.write_text('teacher = "a.pth"\ninit = "b.pth"\n')
    config = parse("--recipe", str(recipe), "--teacher", "off", "--init", "off")
    assert (config.teacher, config.init) == (None, None)
    assert parse("--recipe", "off") == Settings()
    recipe.write_text('teacher = "off"\ninit = "b.pth"\n')
    config = parse("--recipe", str(recipe))
    assert (config.teacher, config.init) == (None, "b.pth")


def test_a_recipe_that_is_not_there():
    with pytest.raises(UserError, match="cannot read it"):
        parse("--recipe", "not/there.toml")


def test_the_recipes_in_the_repository_are_valid_and_published_is_the_default():
    folder = Path(__file__).parents[2] / "recipes"
    recipes = {path.stem: Settings(**read_recipe(path)) for path in folder.glob("*.toml")}
    assert recipes["published"] == Settings(amp=True)
    for recipe in recipes.values():
        for earlier in filter(
            None, (recipe.init, recipe.teacher)
        ):  # by its folder's name the error names its recipe
            its = recipes[Path(earlier).parent.name.removeprefix("snapshots_")]
            assert Path(its.snapshot_dir) / "last.pth" == Path(earlier)


def test_image_sizes_take_equal_parts_of_the_run():
    config = parse("--epochs", "7", "--image_sizes", "16, 24,32")
    assert [config.image_size(epoch) for epoch in range(1, 8)] == [16, 16, 16, 24, 24, 32, 32]
    assert parse("--epochs", "7").image_size(3) == 32


@pytest.mark.parametrize(
    "sizes", ["", "7", "33", "16,", "a", "-16", "16;24", "16," * 300 + "16", "9" * 5000]
)
def test_wrong_image_sizes_are_refused(sizes):
    with pytest.raises(UserError, match="--image_sizes"):
        parse(f"--image_sizes={sizes}")


def test_which_epochs_are_evaluated():
    for freq, expected in ((1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (0, [5]), (9, [5])):
        config = parse("--epochs", "5", "--eval_freq", str(freq))
        assert [epoch for epoch in range(1, 6) if config.evaluates(epoch)] == expected


def test_averaged_weights_are_evaluated_only_where_they_are_kept():
    with pytest.raises(UserError, match="--ema_decay"):
        parse("--evaluate", "ema")
    assert parse("--evaluate", "ema", "--ema_decay", "0.9").evaluate == "ema"


# --- any settings, any command line ---


def values(field: dataclasses.Field) -> st.SearchStrategy:
    """What the field may hold."""
    if field.name == "image_sizes":
        return st.none() | st.lists(st.integers(8, 32).map(str), min_size=1, max_size=4).map(
            ",".join
        )
    kinds = typing.get_args(field.type) or (field.type,)
    within = field.metadata["within"]
    low, high = (float(end) for end in within.text[1:-1].split(",")) if within else (None, None)
    if field.metadata["choices"]:
        some = st.sampled_from(field.metadata["choices"])
    elif bool in kinds:
        some = st.booleans()
    elif int in kinds:
        some = st.integers(math.ceil(low), 2**40 if high == math.inf else int(high))
    elif float in kinds:
        some = st.floats(
            low, None if high == math.inf else high, allow_nan=False, allow_infinity=False,
            exclude_min=within.text[0] == "(", exclude_max=within.text[-1] == ")" and high != math.inf,
        )  # fmt: skip
    else:
        some = st.text(min_size=1).filter(lambda text: text.strip() and "\0" not in text)
    return some | st.none() if field.default is None else some


def command_line(settings: dict) -> list[str]:
    words = []
    for name, value in settings.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            words.append(f"--{name}={value}")
    return words


@given(
    st.fixed_dictionaries(
        {}, optional={name: values(FIELDS[name]) for name in FIELDS if name != "recipe"}
    )
)
def test_any_settings_survive_a_snapshot_and_a_command_line(settings):
    try:
        config = Settings(**settings)
    except UserError as problem:
        assert re.search(
            r"--(min_lr|warmup_epochs|evaluate|image_sizes|teacher) ", str(problem)
        )  # none is wrong alone
        assume(False)
    assert settings_from_dict(dataclasses.asdict(config)) == config
    assert parse(*command_line(settings)) == config
    assert changed_settings(config, config) == ([], [])


WORDS = st.sampled_from(
    [f"--{name}" for name in FIELDS]
    + ["--no-amp", "-1", "0", "1", "1e-3", "inf", "auto", "--", "-h"]
)


@given(st.lists(WORDS | st.tuples(WORDS, st.text()).map("=".join) | st.text(), max_size=6))
def test_any_command_line_is_accepted_or_one_line(words):
    try:
        assert isinstance(parse(*words), Settings)
    except UserError as problem:
        assert str(problem).isprintable()
        assert str(problem)
    except SystemExit as left:
        assert left.code == 0
        assert "-h" in words


@given(st.text())
def test_messages_are_one_printable_line_without_loss(text):
    shown = printable(text)
    assert shown.isprintable()
    assert str(UserError(text)) == shown
    assert printable(shown) == shown


def test_the_readme_shows_the_flags_as_they_are():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- flags: .*? -->\n(.*?)\n<!-- end of flags -->", readme, re.DOTALL)
    assert shown[1] == flags_table(), (
        "run `python -m cifarnet.core.commandline` and put its table into the README"
    )
