import dataclasses
import math
import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.flags_table import flags_table

from cifarnet.core.errors import UserError
from cifarnet.settings import FLAGS, GROUPS, Settings, settings_from_dict
from cifarnet.settings.flags import value_type
from cifarnet.settings.parser import build_parser, flags_of, given_flags

ROOT = Path(__file__).parents[2]


def parse(*argv):
    return Settings.from_flags(**given_flags(argv, "a test"))


# --- the parser ---


@pytest.mark.parametrize(
    "argv",
    [
        ("--epochs", "0"), ("--epochs", "1.5"), ("--epochs", ""), ("--epochs", "9" * 401),
        ("--epochs",), ("--epoch", "3"), ("--no-such-flag",), ("stray",), ("yes", "--amp"),
        ("--lr", "0"), ("--lr", "nan"), ("--lr", "inf"), ("--lr", "1e999"), ("--lr", "fast"),
        ("--dropout", "1.5"), ("--dropout", "-0.1"), ("--momentum", "1"), ("--min_lr", "-1"),
        ("--seed", "-1"), ("--seed", str(2**32)), ("--val_fraction", "1"), ("--mixup", "101"),
        ("--dataset", "imagenet"), ("--log_dir", ""), ("--resume", ""),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_line_that_names_what_is_wrong(argv):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    message = str(caught.value)
    assert "\n" not in message
    assert argv[0].removeprefix("--") in message
    assert caught.value.exit_code == 2


def test_every_path_flag_knows_the_home_directory(monkeypatch, recipe):
    monkeypatch.setenv("HOME", "/home/me")
    others = ("init", "teacher", "resume", "preview_augment", "labels")
    paths = [name for name in FLAGS if name.endswith("_dir") or name in others]
    text = "".join(f'{name} = "~/x.png"\n' for name in paths)
    for settings in (
        *(parse(f"--{name}=~/x.png") for name in paths), parse("--recipe", recipe(text))
    ):  # fmt: skip
        changed = {settings.flags[name] for name in paths}
        assert "/home/me/x.png" in changed
        assert not any(str(value).startswith("~") for value in changed)
    assert parse("--dataset_name", "~").data.dataset_name == "~"


def test_help_shows_every_flag_in_its_group_with_its_default(capsys):
    with pytest.raises(SystemExit) as left:
        parse("--help")
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in FLAGS:
        assert f"--{name}" in text
    assert all(f"{title}:" in text for title in GROUPS)
    assert text.count("(default: ") == len(FLAGS)


def test_a_parser_of_a_few_flags(capsys):
    parser = build_parser("a test", ("epochs", "amp"), defaults=False)
    assert vars(parser.parse_args(["--epochs", "3"])) == {"epochs": 3}
    with pytest.raises(UserError, match="unrecognized arguments: --lr"):
        parser.parse_args(["--lr", "1"])
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "default" not in capsys.readouterr().out


def test_the_documentation_shows_the_flags_as_they_are():
    page = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    first, last = (
        "<!-- flags: made by `python -m tests.support.flags_table` -->\n",
        "\n<!-- end of flags -->",
    )
    shown = page.partition(first)[2].partition(last)[0]
    assert shown == flags_table(), (
        "put the output of `python -m tests.support.flags_table` into docs/flags.md"
    )


# --- recipes ---


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe file: `recipe("epochs = 3")` -> its path."""

    def write(text: str) -> str:
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return str(path)

    return write


def test_the_command_line_wins_over_the_recipe(recipe):
    path = recipe('epochs = 12\nlr = 1\naugment = "light"\n')
    settings = parse("--epochs", "3", "--recipe", path)
    assert settings == Settings.from_flags(recipe=path, epochs=3, lr=1, augment="light")
    assert type(settings.training.lr) is float  # as on the command line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "did you mean epochs?"),
        ("zzz = 3", "no flag 'zzz'"),
        ("recipe = 'other.toml'", "no flag 'recipe'"),
        ("epochs = '3'", "--epochs '3' is not a whole number"),
        ("lr = -1.0", "--lr -1 is out of range"),
        ("[recipe]\nepochs = 3", "no flag 'recipe'"),
        ("epochs", "is not a TOML file"),
        ("epochs = 3\nepochs = 4", "is not a TOML file"),
        (f"epochs = {'9' * 5000}", "is not a TOML file"),
        (f"epochs = {'[' * 5000}", "is not a TOML file"),
    ],
)
def test_a_wrong_recipe_is_named_with_what_is_wrong(recipe, text, message):
    path = recipe(text)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        parse("--recipe", path)
    assert path in str(caught.value)


def test_a_recipe_of_a_windows_editor(recipe):
    assert parse("--recipe", recipe("\ufeffepochs = 3\n")).training.epochs == 3


def test_a_missing_recipe():
    with pytest.raises(UserError, match="cannot read it"):
        parse("--recipe", "missing/a.toml")


def test_what_a_recipe_names_can_be_switched_off(recipe):
    path = recipe('teacher = "a.pth"\ninit = "b.pth"\n')
    settings = parse("--recipe", path, "--teacher", "off", "--init", "off")
    assert (settings.training.teacher, settings.training.init) == (None, None)
    assert parse("--recipe", "off") == Settings()
    settings = parse("--recipe", recipe('teacher = "off"\ninit = "b.pth"\n'))
    assert (settings.training.teacher, settings.training.init) == (None, "b.pth")


# --- any settings, any command line ---


def values(flag: dataclasses.Field) -> st.SearchStrategy:
    """Draws what the flag may hold."""
    if flag.name == "image_sizes":
        return st.none() | st.lists(st.integers(8, 32).map(str), min_size=1, max_size=4).map(
            ",".join
        )
    if flag.name == "image_size":
        return st.sampled_from(range(32, 129, 16))
    if flag.name == "attention_at":
        return st.lists(st.sampled_from("234"), min_size=1, unique=True).map(",".join)
    kind = value_type(flag)
    within = flag.metadata["within"] or "[0, 0]"
    low, high = (min(float(end), 1e300) for end in within[1:-1].split(","))
    if flag.metadata["numbers"]:
        numbers = st.floats(0, 1, exclude_max=True)
        lists = [st.lists(numbers, min_size=n, max_size=n) for n in flag.metadata["numbers"]]
        some = st.one_of(lists).map(lambda rates: ",".join(map(repr, rates)))
        some = some.filter(lambda text: text.count(",") != 3 or float(text.split(",")[3]) <= 0.5)
    elif flag.metadata["choices"]:
        some = st.sampled_from(flag.metadata["choices"])
    elif kind is bool:
        some = st.booleans()
    elif kind is int:
        some = st.integers(math.ceil(low), int(min(high, 2**40)))
    elif kind is float:
        some = st.floats(low, high, exclude_min=within[0] == "(", exclude_max=within[-1] == ")")
    else:
        some = st.text(min_size=1).filter(
            lambda text: text.strip() and "\0" not in text and text[0] != "~"
        )
    return some | st.none() if flag.default is None else some


def command_line(flags: dict) -> list[str]:
    words = []
    for name, value in flags.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            words.append(f"--{name}={value}")
    return words


@given(
    st.fixed_dictionaries(
        {}, optional={name: values(flag) for name, flag in FLAGS.items() if name != "recipe"}
    )
)
def test_any_settings_survive_a_file_and_a_command_line(flags):
    try:
        settings = Settings.from_flags(**flags)
    except UserError as problem:
        # Each value is valid alone. These flags contradict another one.
        together = (
            r"--(min_lr|warmup_epochs|evaluate|image_sizes|teacher|batch_size|auto_augment|"
            r"attention|attention_at|width|depth|compound_scale) "
        )
        assert re.match(together, str(problem))
        assume(False)
    assert settings_from_dict(settings.flags) == settings
    assert parse(*command_line(flags)) == settings
    anew = settings.replace(resume=None, resume_override=False)
    assert parse(*flags_of(settings)) == anew


def test_the_command_line_of_settings_names_what_differs():
    settings = Settings.from_flags(epochs=3, keep_memory=False, dataset_name="-x", recipe="a.toml")
    assert flags_of(settings) == ["--dataset_name=-x", "--epochs", "3", "--no-keep_memory"]


WORDS = st.sampled_from(
    [f"--{name}" for name in FLAGS]
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


def test_a_command_may_explain_a_flag_in_its_own_words():
    parser = build_parser("", ("batch_size", "seed"), texts={"batch_size": "100 % other"})
    shown = " ".join(parser.format_help().split())
    assert "--batch_size N 100 % other" in shown
    assert "Images per step" not in shown
    assert "(default: 42)" in shown


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"image_size": 20}, r"--image_size 20 .* use a whole number in \[32, 128\]"),
        ({"lr": float("inf")}, r"--lr inf .* use a finite number in \(0, inf\)"),
    ],
    ids=str,
)
def test_a_number_out_of_range_is_told_its_range(flags, words):
    with pytest.raises(UserError, match=words):
        Settings.from_flags(**flags)
