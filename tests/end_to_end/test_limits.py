"""Machines that lack something: a temporary folder, a whole package, processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import DRAWN
from support.pictures import draw_tree

ROOT = Path(__file__).parents[2]
SHORT = (*DRAWN, "--epochs", "1", "--limit_train", "20", "--limit_test", "20")


@pytest.fixture
def lacking(tmp_path):
    """`lacking(code, command, *flags)` runs a command in a process that begins with `code`."""

    def run(code: str, name: str, *flags: object, **environment: str):
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "sitecustomize.py").write_text(code, encoding="utf-8")
        return subprocess.run(
            [sys.executable, str(ROOT / f"{name}.py"), *map(str, flags)],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")} | environment,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


NO_TEMPORARY_FOLDER = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc/none']"

EXPORT = ("--format", "safetensors,onnx,onnx-int8,page,hub")
EXPORTED = {"weights.safetensors", "model.onnx", "model-int8.onnx", "page.html", "hub"}


def test_no_usable_temporary_folder(lacking, tmp_path):
    """Nor can matplotlib write to its own folder: it would make a temporary one."""
    picture = draw_tree(tmp_path / "pictures", classes=("a",)).rglob("*.png").__next__()
    for command in (
        ("main", *SHORT, "--num_workers", "2", "--run_dir", "run"),
        ("evaluate", "--run_dir", "run"),
        ("predict", "--pretrained", "run/snapshots_complete/last.pth", picture),
        ("predict", "--explain", "out", picture),
        ("main", *SHORT, "--preview_augment", "out/grid.png"),
        ("export", "--snapshot", "run/snapshots_complete/last.pth", *EXPORT, "--out", "out"),
    ):
        done = lacking(NO_TEMPORARY_FOLDER, *command, MPLCONFIGDIR="/proc/none")
        assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == EXPORTED | {f"{picture.stem}.png", "grid.png"}
    names = {path.name for path in (tmp_path / "run" / "plots_complete").iterdir()}
    assert {"report.html", "training_curves.png", "confusion_matrix.png"} <= names
    assert not any("tmp" in name or "temporary" in name or "torch" in name for name in names)


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("tensorboard", ("main", *SHORT, "--tensorboard", "--run_dir", "run")),
        ("onnx", ("export", "--pretrained", "long", "--format", "onnx", "--out", "run")),
        ("onnxscript", ("export", "--pretrained", "long", "--format", "onnx", "--out", "run")),
        ("onnxruntime", ("predict", "--pretrained", "model.onnx", "picture.png")),
        ("matplotlib", ("predict", "--pretrained", "hour", "--explain", "run", "picture.png")),
        ("optuna", ("sweep", ROOT / "recipes" / "sweep_digits.toml", "--sweep_dir", "run")),
    ],
)
def test_a_package_that_is_there_but_broken(lacking, tmp_path, package, command):
    """Its import fails deep inside, with an error of its own and two lines of text."""
    (tmp_path / "model.onnx").touch()
    (tmp_path / "site" / package).mkdir(parents=True)
    (tmp_path / "site" / package / "__init__.py").write_text("raise OSError('libx.so:\\nno file')")
    done = lacking("", *command)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f" needs the package {package}, which fails to import (libx" in done.stderr
    assert not (tmp_path / "run").exists()
