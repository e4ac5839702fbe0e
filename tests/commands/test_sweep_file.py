import shutil
from pathlib import Path

import pytest

from cifarnet.core.errors import UserError
from commands.sweep_file import Range, read_sweep

FLAGS = "[flags]\nval_fraction = 0.1\n"
SPACE = f"{FLAGS}[search]\ntrials = 4\n[search.space]\n"


@pytest.fixture
def sweep(tmp_path):
    def read(text: str):
        (tmp_path / "sweep.toml").write_text(text)
        return read_sweep(tmp_path / "sweep.toml")

    return read


def test_a_grid_has_every_combination_with_each_seed(sweep):
    grid = sweep(f"seeds = [1, 2]\n{FLAGS}[grid]\nlr = [0.1, 0.3]\nattention = ['none', 'eca']\n")
    expected = [
        {"lr": lr, "attention": attention, "seed": seed}
        for seed in (1, 2)
        for lr in (0.1, 0.3)
        for attention in ("none", "eca")
    ]
    assert grid.settings == expected
    assert grid.space == {"lr": [0.1, 0.3], "attention": ["none", "eca"], "seed": [1, 2]}
    settings = grid.run_settings(expected[-1])
    assert (settings.training.lr, settings.network.attention) == (0.3, "eca")
    assert (settings.training.seed, settings.data.val_fraction) == (2, 0.1)


def test_a_list_takes_what_is_left_out_from_the_flags_or_the_defaults(sweep):
    text = f"{FLAGS}lr = 0.2\n[[settings]]\n[[settings]]\nlr = 0.1\nmixup = 0.5\n"
    assert sweep(text).settings == [{"lr": 0.2, "mixup": 0.0}, {"lr": 0.1, "mixup": 0.5}]


def test_equal_settings_run_once(sweep):
    text = f"seeds = [1, 2]\n{FLAGS}[[settings]]\n[[settings]]\nlr = 0.2\n[[settings]]\nlr = 0.1\n"
    settings = sweep(text.replace("[flags]", "[flags]\nlr = 0.1")).settings
    assert settings == [{"lr": lr, "seed": seed} for seed in (1, 2) for lr in (0.1, 0.2)]


def test_images_with_a_val_folder_need_no_val_fraction(sweep, tree):
    text = f"[flags]\ndataset = 'folder'\ndata_dir = '{tree}'\n[grid]\nlr = [0.1, 0.2]\n"
    with pytest.raises(UserError, match="must not select by the test images"):
        sweep(text)
    shutil.copytree(tree / "test", tree / "val")
    assert len(sweep(text).settings) == 2
    shutil.rmtree(tree / "test")  # then val holds the test images
    with pytest.raises(UserError, match="must not select by the test images"):
        sweep(text)
    with pytest.raises(UserError, match="none does not exist; name a folder"):
        sweep(text.replace(str(tree), "none"))


def test_images_of_a_label_file_with_a_val_folder_need_no_val_fraction(sweep, tree):
    for part in ("val", "test"):
        shutil.copytree(tree / "train", tree / part, dirs_exist_ok=True)
    paths = sorted(path for path in tree.rglob("*") if path.is_file())
    rows = "".join(f"{path.relative_to(tree)},{path.parent.name}\n" for path in paths)
    (tree / "labels.csv").write_text(rows)
    flags = f"dataset = 'folder'\ndata_dir = '{tree}'\nlabels = '{tree}/labels.csv'\n"
    assert len(sweep(f"[flags]\n{flags}[grid]\nlr = [0.1, 0.2]\n").settings) == 2


def test_flags_are_read_as_those_of_a_recipe(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = f"{FLAGS}data_dir = '~/mine'\nteacher = 'off'\n[[settings]]\ninit = 'off'\n"
    read = sweep(text)
    assert read.settings == [{"init": None}]
    assert (read.flags["data_dir"], read.flags["teacher"]) == (str(tmp_path / "mine"), None)


def test_a_search(sweep):
    text = (
        f"{SPACE}lr = {{low = 0.01, high = 1, log = true}}\nbatch_size = {{low = 8, high = 64}}\n"
    )
    search = sweep(text + "attention = ['none', 'se']\n")
    assert search.space == {
        "lr": Range(0.01, 1, True),
        "batch_size": Range(8, 64),
        "attention": ["none", "se"],
    }
    assert (search.sampler, search.trials, search.prune_after) == ("tpe", 4, None)


@pytest.mark.parametrize(
    "differ",
    ["[grid]\nema_decay = [0.9, 0.99]\n", f"{SPACE.removeprefix(FLAGS)}ema_decay = [0.9]\n"],
)
def test_flags_may_need_what_differs(sweep, differ):
    read = sweep(f"{FLAGS}evaluate = 'ema'\n{differ}")
    assert read.example().training.ema_decay == 0.9


def test_flags_may_come_from_a_recipe(sweep, tmp_path):
    (tmp_path / "r.toml").write_text("lr = 0.2\nepochs = 7\nval_fraction = 0.1\n")
    text = f"[flags]\nrecipe = '{tmp_path / 'r.toml'}'\nepochs = 9\n[grid]\nmixup = [0, 0.5]\n"
    settings = sweep(text).run_settings({})
    assert (settings.training.lr, settings.training.epochs) == (0.2, 9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr = ", "is not a TOML file"),
        (FLAGS, "write exactly one of [grid], [[settings]] and [search]"),
        (f"{FLAGS}[grid]\n[search]\n", "write exactly one of"),
        ("[grid]\nlr = [0.1]\n", "a sweep must not select by the test images; set val_fraction"),
        ("[flags]\nval_fraction = 0\n[grid]\nlr = [0.1]\n", "must not select by the test images"),
        (f"{FLAGS}[grid]\nval_fraction = [0.1, 0.2]\n", "val_fraction must not differ: all runs"),
        (f"{FLAGS}[[settings]]\nlimit_train = 9\n", "limit_train must not differ"),
        (f"{SPACE}dataset = ['digits', 'cifar10']\n", "dataset must not differ"),
        (f"{FLAGS}[grid]\nlrr = [0.1]\n", "there is no flag 'lrr'; did you mean lr?"),
        (f"{FLAGS}[grid]\nlr = 0.1\n", "lr is not a list of values; write lr = [...]"),
        (f"{FLAGS}[grid]\nlr = []\n", "lr is not a list of values"),
        (f"{FLAGS}[grid]\nlr = [-1]\n", "--lr -1 is out of range"),
        (f"{FLAGS}[grid]\nlr = [[0.1]]\n", "--lr [0.1] is not a number"),
        (f"{FLAGS}[grid]\nrun_dir = ['a']\n", "run_dir cannot be set in a sweep; remove it"),
        (f"{FLAGS}resume = 'auto'\n[grid]\nlr = [1]\n", "resume cannot be set in a sweep"),
        (f"{FLAGS}evaluate = 'ema'\n[grid]\nlr = [1]\n", "--evaluate ema needs averaged weights"),
        (
            SPACE.replace("[search]", "evaluate = 'ema'\n[search]") + "lr = [1]\n",
            "ema needs averaged",
        ),
        (f"seeds = [3]\n{FLAGS}[grid]\nseed = [1]\n", "seeds and seed are both given; remove one"),
        (f"seeds = [3]\n{FLAGS}seed = 1\n[grid]\nlr = [1]\n", "seeds and seed are both given"),
        (f"seeds = ['a']\n{FLAGS}[grid]\nlr = [1]\n", "--seed 'a' is not a whole number"),
        (f"sedes = [1]\n{FLAGS}[grid]\nlr = [1]\n", "a sweep has no 'sedes'; did you mean seeds?"),
        (f"settings = []\n{FLAGS}", "settings are several tables; write [[settings]]"),
        (f"grid = 3\n{FLAGS}", "[grid] is not a table"),
        (f"seeds = [1]\n{SPACE}lr = [0.1]\n", "a search has no seeds; set seed in [flags]"),
        (f"{FLAGS}[search]\n[search.space]\nlr = [1]\n", "[search] needs the number of runs"),
        (f"{FLAGS}[search]\ntrials = 2\n", "[search.space] names no flag"),
        (f"{FLAGS}[search]\ntrials = 2\nsampler = 'x'\n", "no sampler 'x'; use tpe or random"),
        (f"{FLAGS}[search]\ntrials = 2\nprune_after = 0\n", "prune_after 0 is not a number of"),
        (f"{SPACE}lr = {{low = 0.1}}\n", "lr is not a range; write {low = "),
        (f"{SPACE}lr = {{low = 0.1, high = 0.1}}\n", "lr is not a range of numbers with low below"),
        (f"{SPACE}attention = {{low = 'eca', high = 'se'}}\n", "attention is not a range of"),
        (f"{SPACE}dropout = {{low = 0, high = 0.5}}\n", "dropout is not a range of numbers"),
        (f"{SPACE}mixup = {{low = 0, high = 0.5, log = true}}\n", "so low must be above 0"),
        (f"{SPACE}lr = {{low = 0.1, high = 1, base = 2}}\n", "lr has no 'base'"),
    ],
    ids=lambda value: None,
)
def test_a_wrong_sweep_is_refused_in_one_line(command, text, words):
    Path("sweep.toml").write_text(text)
    done = command("sweep", "sweep.toml")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert words in done.err
    assert "sweep.toml" in done.err
    assert not Path("sweeps").exists()


def test_a_missing_file_and_a_wrong_number_of_jobs(command):
    done = command("sweep", "none.toml")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "none.toml cannot be read" in done.err
    Path("sweep.toml").write_text(f"{FLAGS}[grid]\nlr = [1]\n")
    assert "--jobs 0 is not a number of runs" in command("sweep", "sweep.toml", "--jobs", 0).err
    assert "leave out --table" in command("sweep", "sweep.toml", "--table").err


def test_the_sweeps_of_the_project_can_be_read(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert len(read_sweep(Path("recipes/sweep_digits.toml")).settings) == 4
    ablation = {"sweep": 16, "seeds": 12, "together": 1, "longer": 2}
    assert {path.stem for path in Path("results/ablation").glob("*.toml")} == ablation.keys()
    for name, runs in ablation.items():
        assert len(read_sweep(Path(f"results/ablation/{name}.toml")).settings) == runs
    with pytest.raises(UserError):
        read_sweep(Path("recipes/digits.toml"))
