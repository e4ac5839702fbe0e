"""Machines that lack something: a temporary folder, a whole package, processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import SHORT
from support.pictures import draw_tree

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lacking(tmp_path):
    """`lacking(code, *words)` runs Python with `words` in a process that begins with `code`."""

    def run(code: str, *words: object, **environment: str):
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "sitecustomize.py").write_text(code, encoding="utf-8")
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")} | environment,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


NO_TEMPORARY_FOLDER = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc/none']"
EACH = f"""  # the commands, one after the other; each has to find a folder
import importlib, json, sys, tempfile
sys.path.append({str(ROOT)!r})
for name, *flags in json.loads(sys.argv[1]):
    tempfile.tempdir = None
    code = importlib.import_module(name).main(flags)
    print("exit code", code, "with" if tempfile.tempdir else "without", "a folder")
"""

EXPORT = ("--format", "safetensors,onnx,onnx-int8,page,hub")
EXPORTED = {"weights.safetensors", "model.onnx", "model-int8.onnx", "page.html", "hub"}


def test_no_usable_temporary_folder(lacking, tmp_path):
    """Nor can matplotlib write to its own folder: it would make a temporary one."""
    picture = draw_tree(tmp_path / "pictures", classes=("a",)).rglob("*.png").__next__()
    drawn = ("--plot_training", "--plot_evaluation", "--report")
    commands = [
        ("main", *SHORT, *drawn, "--num_workers", "2", "--run_dir", "run"),
        ("evaluate", "--run_dir", "run"),
        ("predict", "--pretrained", "run/snapshots_complete/last.pth", picture),
        ("predict", "--explain", "out", picture),
        ("main", *SHORT, "--preview_augment", "out/grid.png"),
        ("export", "--snapshot", "run/snapshots_complete/last.pth", *EXPORT, "--out", "out"),
    ]
    words = ("-c", EACH, json.dumps(commands, default=str))
    done = lacking(NO_TEMPORARY_FOLDER, *words, MPLCONFIGDIR="/proc/none")
    ends = [line.split()[2:4] for line in done.stdout.splitlines() if line.startswith("exit code ")]
    folders = ["with", "with", "without", "with", "with", "with"]  # to predict alone needs none
    assert ends == [["0", folder] for folder in folders], done.stderr
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
    name, *flags = command
    done = lacking("", ROOT / f"{name}.py", *flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f" needs the package {package}, which fails to import (libx" in done.stderr
    assert not (tmp_path / "run").exists()
