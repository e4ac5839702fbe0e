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
