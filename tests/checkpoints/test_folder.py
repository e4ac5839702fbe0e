from pathlib import Path

import pytest
from support.snapshots import make_snapshot

from cifarnet.checkpoints.folder import find_best, find_newest, outdated, prune
from cifarnet.checkpoints.paths import BEST, LAST, numbered
from cifarnet.checkpoints.snapshots import pack
from cifarnet.core.errors import UserError
from cifarnet.core.files import move_aside


def save(path: Path, epoch: int, **changes) -> None:
    path.write_bytes(pack(make_snapshot(epoch, **changes)))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_newest_numbered_ones_are_kept(tmp_path):
    for epoch in (9998, 9999, 10000):
        numbered(tmp_path, epoch).touch()
    others = [BEST, LAST, "snapshot_epoch_old.pth"]
    for name in others:
        (tmp_path / name).touch()
    prune(tmp_path, 0)
    assert len(names(tmp_path)) == 6
    prune(tmp_path, 2)
    kept = ["snapshot_epoch_9999.pth", "snapshot_epoch_10000.pth"]
    assert names(tmp_path) == sorted(others + kept)


# --- the newest ---


def test_the_newest_intact_snapshot_is_found(tmp_path):
    assert find_newest(tmp_path) == (None, [])
    for epoch in (5, 10, 15):
        save(numbered(tmp_path, epoch), epoch)
    save(tmp_path / LAST, 17)
    assert find_newest(tmp_path) == (tmp_path / LAST, [])
    (tmp_path / LAST).write_bytes(b"damaged")
    numbered(tmp_path, 15).write_bytes(b"damaged")
    newest, skipped = find_newest(tmp_path)
    assert newest == numbered(tmp_path, 10)
    assert [LAST in why or "0015" in why for why in skipped] == [True, True]


def test_an_intact_snapshot_of_another_version_is_never_skipped(tmp_path):
    """A new run would start, although the training could continue."""
    save(tmp_path / LAST, 3, random_state={"cpu": "text"})
    for read in (
        find_newest,
        lambda folder: find_best(folder / LAST, folder, 3, "the run"),
        lambda folder: outdated(folder, keep_up_to=3),
    ):
        with pytest.raises(UserError, match="another version of this project may have written it"):
            read(tmp_path)


def test_the_best_is_the_newest_only_where_no_other_is_intact(tmp_path):
    save(tmp_path / BEST, 12)
    save(numbered(tmp_path, 10), 10)
    assert find_newest(tmp_path) == (numbered(tmp_path, 10), [])
    numbered(tmp_path, 10).write_bytes(b"damaged")
    newest, skipped = find_newest(tmp_path)
    assert (newest, len(skipped)) == (tmp_path / BEST, 2)
    numbered(tmp_path, 10).unlink()
    newest, (why,) = find_newest(tmp_path)
    assert newest == tmp_path / BEST
    assert f"{LAST} and numbered snapshots" in why


@pytest.mark.parametrize("name", [LAST, "snapshot_epoch_0005.pth", BEST])
def test_a_snapshot_of_another_user_is_never_skipped(tmp_path, monkeypatch, name):
    """A run that took an older one would move this one aside, or write over it."""
    save(tmp_path / name, 5)
    if name != BEST:
        save(numbered(tmp_path, 4), 4)
    plain = Path.open

    def refuse(path: Path, *arguments, **options):
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    for search in (
        lambda: find_newest(tmp_path),
        lambda: find_best(tmp_path / LAST, tmp_path, 5, "first"),
    ):
        with pytest.raises(UserError, match=rf"{name} cannot be read \(Permission denied"):
            search()
    before = names(tmp_path)
    if name != "snapshot_epoch_0005.pth":  # its name tells its epoch
        with pytest.raises(UserError, match=rf"{name} cannot be read"):
            outdated(tmp_path, 4)
    assert names(tmp_path) == before


# --- the best ---


def test_the_best_of_a_run_is_found_by_its_id_and_epoch(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()

    def best(epoch: int, source: Path = old / LAST) -> Path | None:
        return find_best(source, new, epoch, "first")

    save(old / BEST, 7)
    assert best(6) is None
    assert best(7) == old / BEST
    save(new / BEST, 7, run_id="other")
    assert best(7) == old / BEST
    save(new / BEST, 7)
    assert best(7) == new / BEST
    save(numbered(old, 9), 9)
    assert best(9, numbered(old, 9)) == numbered(old, 9)
    save(numbered(old, 5), 5)
    assert best(5) == numbered(old, 5)


# --- earlier runs ---


def test_a_new_run_moves_all_snapshots_of_an_older_one(tmp_path):
    for path in (numbered(tmp_path, 5), tmp_path / BEST):
        save(path, 5)
    (tmp_path / LAST).write_bytes(b"damaged")
    (tmp_path / "mine.pth").write_text("not of a run")
    folder = move_aside(outdated(tmp_path, 0), tmp_path)
    assert names(folder) == [BEST, LAST, "snapshot_epoch_0005.pth"]
    assert names(tmp_path) == [folder.name, "mine.pth"]
    assert move_aside(outdated(tmp_path, 0), tmp_path) is None
    save(tmp_path / LAST, 5)
    assert move_aside([tmp_path / LAST], tmp_path) != folder  # within the same second


def test_going_back_moves_what_came_later(tmp_path):
    for epoch in (5, 10, 15):
        save(numbered(tmp_path, epoch), epoch)
    save(tmp_path / LAST, 15)
    save(tmp_path / BEST, 7)
    later = [numbered(tmp_path, 15), tmp_path / LAST]
    assert outdated(tmp_path, 10, 7) == later
    assert outdated(tmp_path, 10, 6) == [*later, tmp_path / BEST]
