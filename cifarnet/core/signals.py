"""Stop requests: Ctrl-C (SIGINT) and SIGTERM."""

import contextlib
import os
import signal
import sys
import types
from collections.abc import Iterator


class Interrupted(KeyboardInterrupt):
    """The command was asked to stop. Exit code 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Signals:
    """A `with` block in which SIGINT and SIGTERM raise `Interrupted`.

    They raise at once, or inside `deferred()` at the next `check()`. A second signal ends the
    process at once. Python drops what is raised inside a destructor: then the next `check()` or the
    end of the block raises it again.

    With `patient` further signals are ignored, also after the block has ended by `Interrupted`:
    torchrun can pass on a signal that the process already got, and that one would change the exit
    code. A process that does not end is killed by torchrun.
    """

    def __init__(self, patient: bool = False) -> None:
        self.patient = patient
        self.received = 0  # number of the first signal; 0: none yet
        self._deferred = False

    def __enter__(self) -> "Signals":
        self._former_hook = sys.unraisablehook
        sys.unraisablehook = self._on_dropped
        self._former = {
            signum: signal.signal(signum, self._handle)
            for signum in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, *problem: object) -> None:
        leaving = self.patient and kind is not None and issubclass(kind, Interrupted)
        for signum, handler in self._former.items():
            signal.signal(signum, signal.SIG_IGN if leaving else handler)
        sys.unraisablehook = self._former_hook
        if kind is None:
            self.check()

    def _handle(self, signum: int, frame: types.FrameType | None) -> None:
        if self.received and self.patient:
            return
        if self.received:
            os._exit(128 + signum)
        self.received = signum
        # Data loader workers get the signal too; torch's SIGCHLD handler raises when they end.
        # SIG_DFL would not do: Python complains if it is set while a SIGCHLD waits to be handled.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        if not self._deferred:
            raise Interrupted(signum)

    def _on_dropped(self, dropped: "sys.UnraisableHookArgs") -> None:
        """Python's hook for what was raised where nothing can catch it: a stop is not printed."""
        if not isinstance(dropped.exc_value, Interrupted):
            self._former_hook(dropped)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside this block a signal raises only at `check()`; the end of the block checks too."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside this block, within `deferred()`, a signal raises at once: nothing is half done."""
        self._deferred = False
        try:
            self.check()
            yield
        finally:
            self._deferred = True

    def check(self) -> None:
        """Raises `Interrupted` if a signal has come."""
        if self.received:
            raise Interrupted(self.received)
