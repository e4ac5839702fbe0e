import argparse

import pytest

from cifarnet.core.arguments import Parser, check_package
from cifarnet.core.errors import UserError


@pytest.fixture
def parser():
    parser = Parser(allow_abbrev=False)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--amp", action=argparse.BooleanOptionalAction)
    return parser


def test_a_misspelt_flag_is_answered_with_the_closest(parser):
    with pytest.raises(UserError, match=r"did you mean --epochs\?"):
        parser.parse_args(["--epohcs", "3"])
    with pytest.raises(UserError, match="see --help"):
        parser.parse_args(["--epochs", "three"])


@pytest.mark.parametrize("word", ["--amp=true", "--amp=", "--no-amp=1"])
def test_a_switch_takes_no_value(parser, word):
    with pytest.raises(UserError, match=r"^--amp takes no value; "):
        parser.parse_args([word])


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("predict", ["--pretrained", "hour", ""]),
        ("predict", ["--pretrained", "hour", "--explain", "", "a.png"]),
        ("export", ["--pretrained", "hour", "--out", ""]),
        ("compare", [""]),
        ("sweep", ["a.toml", "--sweep_dir="]),
        ("bench", ["--json", ""]),
        ("evaluate", ["--snapshot", ""]),
        ("main", ["--run_dir", ""]),
    ],
)
def test_an_empty_path_is_refused(command, tmp_path, name, flags):
    """Of an unset variable in a shell. It would mean the working directory, or the default."""
    done = command(name, *flags)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "is empty" in done.err
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_flag():
    check_package("numpy", "--json")
    with pytest.raises(UserError, match=r"--json needs the package no_such_package, .*; pip "):
        check_package("no_such_package", "--json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("raise RuntimeError('no\\nlibx.so')", r"which fails to import \(no libx.so\); pip"),
        ("import no_such_module", r"fails to import \(No module named 'no_such_module'\)"),
        ("assert False", r"fails to import \(AssertionError\(\)\)"),
    ],
    ids=str,
)
def test_a_package_that_fails_to_import_says_why(tmp_path, monkeypatch, content, words):
    (tmp_path / "broken_package.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"^--json needs the package broken_package, .*{words}"):
        check_package("broken_package", "--json")
