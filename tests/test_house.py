"""The layout: no import goes upwards or in a circle. Flags are read before torch is imported."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cifarnet"
# A folder, and the folders that its files may import from besides their own.
FLOORS = {
    "core": set(),
    "settings": {"core"},
    "images": {"core", "settings"},
    "augment": {"core", "settings", "images"},
    "networks": {"settings"},
    "training": {"core", "settings", "networks"},
    "checkpoints": {"core", "settings"},
    "reporting": {"core", "settings", "checkpoints"},
    "inference": {"core", "settings", "images", "networks"},
}
COMMANDS = sorted(
    path.name for path in ROOT.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
)


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it: `from a import b` may mean a or a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the floor"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> dict[str, Path]:
    """All our modules by name, tests apart."""
    files = [*ROOT.glob("*.py"), *PACKAGE.rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}


def test_every_folder_of_the_package_has_its_floor():
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    assert folders - {"."} == set(FLOORS)


@pytest.mark.parametrize("floor", FLOORS)
def test_no_import_goes_upwards(floor):
    top = {path.stem for path in ROOT.glob("*.py")}
    for file in (PACKAGE / floor).glob("*.py"):
        for name in imports_of(file):
            assert name.split(".")[0] not in top, f"{file} imports the top level: {name}"
            if name.startswith("cifarnet."):
                assert name.split(".")[1] in FLOORS[floor] | {floor}, f"{file} imports {name}"


def test_no_import_goes_in_a_circle():
    ours = modules()
    graph = {name: (imports_of(file) & set(ours)) - {name} for name, file in ours.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("file", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "--no_such_flag"])
def test_a_command_answers_before_it_imports_torch(file, flag):
    code = (
        "import contextlib, io, runpy, sys\n"
        f"sys.argv = [{file!r}, {flag!r}]\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    runpy.run_path({str(ROOT / file)!r}, run_name='__main__')\n"
        "slow = {'torch', 'numpy', 'PIL', 'sklearn', 'matplotlib', 'albumentations'}\n"
        "print(sorted(slow & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stderr
    errors = run.stderr.splitlines()
    assert len(errors) == (flag != "--help"), run.stderr
    assert all(line.startswith("error: ") for line in errors)
