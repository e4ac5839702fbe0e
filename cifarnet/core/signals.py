"""Stop requests: Ctrl-C (SIGINT), SIGTERM, and SIGHUP where the terminal is closed."""

import contextlib
import os
import signal
import sys
import types
from collections.abc import Iterator


class Interrupted(KeyboardInterrupt):
    """The command was asked to stop. Exit code 130 (Ctrl-C), 143 (SIGTERM) or 129 (SIGHUP)."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """A `with` block in which `STOPS` raise `Interrupted`.

    They raise at once, or inside `deferred()` at the next `check()`. A second signal ends the
    process at once. A second SIGHUP is ignored: shell and terminal may both send one. Python drops
    an exception inside a destructor. Then the next `check()`, or the end of the block, raises it
    again. A signal that is ignored at the start stays ignored: `nohup` ignores SIGHUP, and a shell
    starts a command with `&` in a script so that Ctrl-C does not end it.

    With `patient`, further signals are ignored, also after the block has ended by `Interrupted`.
    torchrun can pass on a signal that the process already received, which would change the exit
    code. torchrun kills a process that does not end.
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
            for signum in STOPS
            if signal.getsignal(signum) is not signal.SIG_IGN
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
        if self.received and (self.patient or signum == signal.SIGHUP):
            return
        if self.received:
            os._exit(128 + signum)
        self.received = signum
        # Data loader workers receive the signal too, and torch's SIGCHLD handler raises when they
        # end. Python complains if SIG_DFL is set while a SIGCHLD is pending, so set a function.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        if not self._deferred:
            raise Interrupted(signum)

    def _on_dropped(self, dropped: "sys.UnraisableHookArgs") -> None:
        """Python's hook for exceptions that nothing can catch. Does not print `Interrupted`."""
        if not isinstance(dropped.exc_value, Interrupted):
            self._former_hook(dropped)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside this block a signal raises only at `check()`. The end of the block checks too."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside this block, within `deferred()`, a signal raises at once."""
        self._deferred = False
        try:
            self.check()
            yield
        finally:
            self._deferred = True

    def check(self) -> None:
        """Raises `Interrupted` if a signal was received."""
        if self.received:
            raise Interrupted(self.received)
