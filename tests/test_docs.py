"""README, docs/ and the other pages: length, links, named files and flags, figures, examples."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.answers import ask

from cifarnet.reporting.html import PUBLISHED, PUBLISHED_EPOCHS, PUBLISHED_F1
from cifarnet.settings import FLAGS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDE = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md", *GUIDE]
RESULTS = sorted(path.parent.name for path in ROOT.glob("results/*/metrics.json"))
OTHER_PROGRAMS = {  # flags of torchrun, srun, sbatch and tensorboard
    "logdir",
    *("nproc_per_node", "nnodes", "rdzv_backend", "rdzv_endpoint", "rdzv_id", "max-restarts"),
    *("nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "requeue", "signal"),
}
COMMANDS = (
    *("main", "run_complete_training", "evaluate", "predict", "export", "compare", "sweep"),
    "bench",
)
FLAG = re.compile(r"(?<![\w-])--([a-z][\w-]*)")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)

each_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of `page`."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """The flags that each command accepts, without their dashes, as its --help names them."""
    answers = ask([(f"{command}.py", "--help") for command in COMMANDS])
    assert {answer.code for answer in answers} == {0}
    texts = dict(zip(COMMANDS, (answer.out for answer in answers), strict=True))
    return {command: set(FLAG.findall(text)) for command, text in texts.items()}


def commands(text: str) -> list[tuple[str, set[str]]]:
    """Our commands in the code blocks of `text`: name, and flags without their dashes."""
    blocks = "\n".join(code for _, code in FENCED.findall(text)).replace("\\\n", " ")
    lines = (line.split(" # ")[0] for line in blocks.splitlines() if not line.startswith("#"))
    matches = (re.search(r"\b(?:python|torchrun) .*?\b(\w+)\.py\b(.*)", line) for line in lines)
    return [(match[1], set(FLAG.findall(match[2]))) for match in matches if match]


def tables(page: Path) -> dict[str, list[str]]:
    """The cells of each table row by its first cell; an earlier row wins."""
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in read(page).splitlines()
        if line.startswith("|")
    ]
    return {cells[0]: cells[1:] for cells in reversed(rows)}


def test_the_readme_is_short():
    assert len(read(README).split()) <= 1300


def test_the_readme_leads_to_each_page():
    for page in PAGES[1:]:
        assert f"]({page.relative_to(ROOT).as_posix()})" in read(README)


@each_page
def test_links_and_pictures_have_a_target(page):
    text = FENCED.sub("", read(page))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@each_page
def test_named_files_exist(page):
    within = {path.name for path in (*ROOT.glob("cifarnet/*/*.py"), *ROOT.glob("recipes/*"))}
    for name in re.findall(r"(?<![\w/.])[\w/]+\.(?:py|toml)\b", read(page)):
        assert (ROOT / name).exists() or name in within, name


@each_page
def test_named_flags_exist(page, flags):
    existing = OTHER_PROGRAMS.union(FLAGS, *flags.values())
    existing |= {f"no-{name}" for name, spec in FLAGS.items() if spec.type is bool}
    assert set(FLAG.findall(read(page))) <= existing


@each_page
def test_commands_accept_their_flags(page, flags):
    for name, used in commands(read(page)):
        assert used <= flags[name], name


def test_the_tree_is_the_tree():
    tree = next(code for _, code in FENCED.findall(read(README)) if "cifarnet/\n" in code)
    top = set(re.findall(r"^([\w/.]+)", tree, re.MULTILINE))
    assert {name for name in top if name.endswith(".py")} == {p.name for p in ROOT.glob("*.py")}
    assert all((ROOT / name).exists() for name in top)
    folders = {path.parent.name for path in ROOT.glob("cifarnet/*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/", tree, re.MULTILINE)) == folders


@pytest.mark.parametrize("name", RESULTS)
def test_figures_are_those_of_the_results(name):
    report = json.loads((ROOT / "results" / name / "metrics.json").read_text(encoding="utf-8"))
    shares = {f"top-{k}": f"{100 * report[f'top{k}']:.2f} %" for k in (1, 3, 5)}

    front = next(row for first, row in tables(README).items() if first.startswith(f"[`{name}`]"))
    assert (front[0], front[2]) == (f"{report['parameters']:,}", shares["top-1"])

    rows = tables(ROOT / "results" / "README.md")
    column = rows["class"].index(f"`{name}`")
    macro = ", ".join(f"{report['macro'][which]:.4f}" for which in ("precision", "recall", "f1"))
    by_class = {label: f"{row['f1']:.4f}" for label, row in report["per_class"].items()}
    for first, figure in (shares | {"macro precision, recall, F1": macro} | by_class).items():
        assert rows[first][column] == figure, first


def test_the_ablation_has_the_accuracies_of_its_logs():
    rows = tables(ROOT / "results" / "README.md")
    for log in (ROOT / "results" / "ablation").glob("*.log"):
        if not log.stem.startswith("teacher_network"):
            accuracy = re.findall(r"val \S+ (\S+)%", read(log))[-1]
            assert f"{accuracy} %" in rows[f"`{re.sub('-4[34]$', '', log.stem)}`"], log


def test_what_was_tried_has_the_accuracies_of_its_logs():
    rows = tables(ROOT / "results" / "README.md")
    for log in (ROOT / "results" / "tried").glob("*.log"):
        if accuracies := re.findall(r"(?:val|test) \S+ (\S+)%", read(log)):
            row = next(row for first, row in rows.items() if first.startswith(f"`{log.stem}`"))
            assert f"{accuracies[-1]} %" in row, log


def test_the_published_figures_are_the_same_everywhere():
    shares = [f"{100 * share:.2f} %" for share in PUBLISHED.values()]
    row = next(cells for first, cells in tables(README).items() if first == "published run")
    assert (row[0], row[2], row[4]) == ("174,762", shares[0], f"{PUBLISHED_EPOCHS} epochs")
    rows = tables(ROOT / "results" / "README.md")
    assert [rows[f"top-{k}"][0] for k in (1, 3, 5)] == shares
    assert rows["macro precision, recall, F1"][0].endswith(f", {PUBLISHED_F1:.4f}")


def test_there_are_results_and_logs_to_check():
    assert {"lite", "hour", "published"} <= set(RESULTS)
    for folder in ("ablation", "tried"):
        assert len(list((ROOT / "results" / folder).glob("*.log"))) > 5
    assert len(EXAMPLES) >= 3


EXAMPLES = [code for page in PAGES for kind, code in FENCED.findall(read(page)) if kind == "python"]


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_python_examples_name_the_class_of_a_picture(code, trained, tmp_path, monkeypatch, capsys):
    name = re.search(r'"(\w+)"(?:\)|, source)', code)[1]
    assert (ROOT / "results" / name / "weights.safetensors").exists()
    # a network for other classes replaces it, because there is no picture of CIFAR-10
    code = code.replace(f'"{name}"', repr(str(trained.weights)))
    code = code.replace('"/path/to/CIFARNet"', repr(str(ROOT)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for path in sorted(trained.tree.glob("test/*/*.png")):
        with Image.open(path) as picture:
            picture.resize((300, 200)).save("photo.jpg")
        exec(code, {})
        assert capsys.readouterr().out == f"{path.parent.name}\n"
    if "sys.path" in code:  # it finds the project from anywhere
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == f"{path.parent.name}\n", done.stderr
