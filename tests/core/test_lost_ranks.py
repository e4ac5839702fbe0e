"""Ranks that are late, fail, are killed or hang."""

import functools
import re
import signal
from datetime import timedelta

import pytest
import torch.distributed as dist
from support import started_ranks as jobs

from cifarnet.core.errors import UserError
from cifarnet.core.launch import ALONE, Ranks
from cifarnet.core.ranks import Group, LostContactError

LOST = "lost contact with another rank: it ended, hangs, or its machine is gone"


@pytest.mark.parametrize("job", [jobs.starts_late, jobs.works_long])
def test_a_slow_start_and_long_work_are_no_hang(started, job):
    ranks = started(job)
    assert ranks.end() == [0] * 3, ranks.output
    assert ranks.output == ""


@pytest.mark.parametrize(
    ("job", "codes", "expected"),
    [
        (jobs.finds_an_error, [1, 2, 1], "error: rank 1: no such folder"),
        (jobs.finds_an_error_before_the_others, [2, 1, 1], "error: rank 0: no such folder"),
        (jobs.has_a_bug, [1, 1, 1], "error: rank 1: ZeroDivisionError: division by zero"),
    ],
)
def test_one_rank_fails_and_one_line_says_why(started, job, codes, expected):
    ranks = started(job)
    assert ranks.end() == codes
    assert len(ranks.errors) == 1, ranks.output
    assert ranks.errors[0].startswith(expected)
    bug = job is jobs.has_a_bug
    assert ranks.output.count("Traceback") == bug
    assert bug or len(ranks.output.splitlines()) == 1, ranks.output


def test_an_error_that_all_find_is_reported_once_and_others_each(started):
    ranks = started(jobs.all_find_errors)
    assert ranks.end() == [2, 2, 2]
    same, other = sorted(ranks.output.splitlines(), key=lambda line: "disk" in line)
    assert re.fullmatch(r"error: rank [01]: --lr 0", same)
    assert other == "error: rank 2: a broken disk"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize(
    "job",
    [
        jobs.loses_one_in_an_exchange,
        jobs.loses_one_in_a_step,
        jobs.loses_one_while_the_first_works,
    ],
)
def test_a_killed_or_hanging_rank_ends_the_others_with_one_line(started, job, how):
    ranks = started(functools.partial(job, signum=how))
    assert ranks.end(0, 2) == [1, 1]
    assert re.fullmatch(f"error: rank [02]: {LOST}\n", ranks.output), ranks.output


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_first_rank_is_killed_or_hangs_while_the_others_wait(started, how):
    ranks = started(functools.partial(jobs.loses_the_first_at_work, signum=how))
    assert ranks.end(1, 2) == [1, 1]
    lines = ranks.output.splitlines()
    (error,) = ranks.errors
    who = re.fullmatch(f"error: (rank [12]): {LOST}", error)[1]
    assert lines.index(error) < lines.index(f"a last word of {who}")  # it may have no time left
    assert sorted(lines) == ["a last word of rank 1", "a last word of rank 2", error]


def test_only_what_torch_raises_about_other_ranks_is_a_lost_contact(capsys):
    group = Group(Ranks(1, 2, 1, 2), dist.HashStore())
    for other, text in ((group, "shapes do not match"), (Group(ALONE), "gloo.pth is no file")):
        with pytest.raises(RuntimeError, match=text), other.contact():
            raise RuntimeError(text)
    with pytest.raises(LostContactError), group.contact():
        dist.HashStore().wait(["0 started"], timedelta(milliseconds=1))
    assert capsys.readouterr().err == f"error: rank 1: {LOST}\n"
    with pytest.raises(LostContactError, match="gone; NCCL says: no room"), group.contact():
        raise RuntimeError("NCCL error in: a.cpp, unhandled system error\nLast error:\nno room\n")


def test_errors_are_reported_without_a_store_too(capsys):
    class Gone:
        def add(self, *args):
            raise RuntimeError("Broken pipe")

    Group(Ranks(1, 2, 1, 2), Gone()).report(UserError("--lr 0"))
    assert capsys.readouterr().err == "error: rank 1: --lr 0\n"


def test_restarted_ranks_ignore_what_the_former_ones_left_in_the_store(started):
    for attempt in (0, 1):
        ranks = started(jobs.finds_an_error, attempt=attempt)
        assert ranks.end() == [1, 2, 1]
        assert ranks.output == "error: rank 1: no such folder\n"
