import platform
from importlib.metadata import version

import pytest

from cifarnet.core.errors import UserError
from cifarnet.core.packages import check_package, versions


def test_a_missing_package_is_named_with_its_flag():
    check_package("numpy", "--json")
    with pytest.raises(UserError, match=r"--json needs the package no_such_package, .*; pip "):
        check_package("no_such_package", "--json")


def test_versions_are_those_of_the_installed_packages():
    assert versions()["torch"] == version("torch")
    assert versions()["python"] == platform.python_version()
