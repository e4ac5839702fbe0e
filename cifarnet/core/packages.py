"""Installed packages: optional ones, and the versions of the others."""

import importlib.util
import platform
from importlib.metadata import version

from cifarnet.core.errors import UserError


def check_package(name: str, flag: str) -> None:
    """Raises `UserError` if the optional package `name`, which `flag` needs, is not installed."""
    if importlib.util.find_spec(name) is None:
        raise UserError(
            f"{flag} needs the package {name}, which is not installed; "
            f"pip install -r requirements-extra.txt, or leave {flag} out"
        )


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that affect the figures of a run."""
    packages = ("torch", "torchvision", "numpy", "albumentations", "scikit-learn")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
