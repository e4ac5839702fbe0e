"""The layout: no import goes upwards or in a circle. Flags are read before torch is imported."""

import ast
import graphlib
import itertools
import re
from pathlib import Path

import pytest
from support.answers import Answer, ask

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cifarnet"
# By folder of the package: the folders that its files may import from besides their own.
LAYERS = {
    folder: set(re.findall(r"`(\w+)`", allowed))
    for folder, allowed in re.findall(
        r"^\| `cifarnet/(\w+)` \| ([^|]+) \|",
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
}
STORY = {"model", "data", "train", "plots"}
COMMANDS = sorted(
    path.name for path in ROOT.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
)
OPTIONAL = {"tensorboard", "onnx", "onnxruntime", "onnxscript"}  # packages: imported late
OPTIONAL_PARTS = ("torch.utils.tensorboard",)  # these need such a package
LONGEST = 300  # lines of a file


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it: `from a import b` may mean a or a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules() -> dict[str, Path]:
    """All our modules by name, tests apart."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("commands/*.py"), *PACKAGE.rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}


def test_every_folder_of_the_package_is_a_layer():
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    assert folders - {"."} == set(LAYERS)


def test_the_top_level_holds_the_story_and_the_commands():
    names = {path.stem for path in ROOT.glob("*.py")}
    assert names - {Path(name).stem for name in COMMANDS} == STORY | {"hubconf"}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_folder_imports_what_its_layer_allows(layer):
    names = set().union(*map(imports_of, (PACKAGE / layer).glob("*.py")))
    tops = {path.stem for path in ROOT.glob("*.py")} | {"commands"}
    assert not {name.split(".")[0] for name in names} & tops
    folders = {name.split(".")[1] for name in names if name.startswith("cifarnet.")}
    assert folders - {layer} == LAYERS[layer]


def test_the_story_imports_no_command_and_the_commands_folder_no_command_file():
    commands = {Path(name).stem for name in COMMANDS}
    for file in [*(ROOT / f"{name}.py" for name in STORY), *ROOT.glob("commands/*.py")]:
        above = commands | ({"commands"} if file.parent == ROOT else set())
        imported = {name.split(".")[0] for name in imports_of(file)}
        assert not imported & above, f"{file} imports {imported & above}"


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_stand_at_the_top(name):
    file = modules()[name]
    if file.name in COMMANDS:
        return  # they import torch late, so that --help and errors come at once
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                late = isinstance(node, ast.Import | ast.ImportFrom)
                parts = {alias.name for alias in node.names} if late else set()
                parts = {node.module} if isinstance(node, ast.ImportFrom) else parts
                early = {
                    part
                    for part in parts
                    if part.split(".")[0] not in OPTIONAL and not part.startswith(OPTIONAL_PARTS)
                }
                assert not early, f"{file}, {function.name}: imports {early}"


def test_files_stay_short():
    inside = (
        path for name in ("cifarnet", "commands", "tests") for path in (ROOT / name).rglob("*")
    )
    files = [path for path in (*ROOT.glob("*.py"), *inside) if path.suffix in (".py", ".js")]
    assert len(files) > 300
    counts = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: count for name, count in counts.items() if count > LONGEST} == {}


def test_no_import_goes_in_a_circle():
    ours = modules()
    graph = {name: (imports_of(file) & set(ours)) - {name} for name, file in ours.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


QUESTIONS = list(itertools.product(COMMANDS, ("--help", "--no_such_flag")))


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, str], Answer]:
    return dict(zip(QUESTIONS, ask(QUESTIONS), strict=True))


@pytest.mark.parametrize(("file", "flag"), QUESTIONS)
def test_a_command_answers_before_it_imports_torch(answers, file, flag):
    answer = answers[file, flag]
    assert answer.imported == []
    errors = answer.err.splitlines()
    assert len(errors) == (flag != "--help"), answer.err
    assert all(line.startswith("error: ") for line in errors)
    assert answer.code == (0 if flag == "--help" else 2)
