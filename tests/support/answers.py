"""What commands answer before any work: to --help, and to a wrong flag. One process asks all."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ASK = f"""
import contextlib, io, json, runpy, sys
root = {str(ROOT)!r}
sys.path.insert(0, root)
slow = {{"torch", "numpy", "PIL", "sklearn", "matplotlib", "albumentations"}}
answers = []
for file, flag in json.loads(sys.argv[1]):
    sys.argv = [file, flag]
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(f"{{root}}/{{file}}", run_name="__main__")
        except SystemExit as end:
            code = end.code
    answers.append([code, out.getvalue(), err.getvalue(), sorted(slow & set(sys.modules))])
print(json.dumps(answers))
"""


class Answer(NamedTuple):
    """The exit code of a command, what it printed, and the slow packages imported so far."""

    code: int
    out: str
    err: str
    imported: list[str]


def ask(questions: Sequence[tuple[str, str]]) -> list[Answer]:
    """The answers to `questions`, each a file of a command and its only flag."""
    words = [sys.executable, "-c", ASK, json.dumps(questions)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return [Answer(*answer) for answer in json.loads(done.stdout)]
