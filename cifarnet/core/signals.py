"""Stop requests: Ctrl-C and SIGTERM."""

import contextlib
import os
import signal
import types
from collections.abc import Iterator


class Interrupted(KeyboardInterrupt):
    """The user, or the machine's, wish that the command ends: Ctrl-C or SIGTERM. Exit code 130 or 143."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Signals:
    """Meanwhile, SIGINT and SIGTERM raise `Interrupted`: at once or, inside `deferred()`, at the next `check()`.

    A second signal ends the process at once, unless `patient`: torchrun may pass on what all processes of a job got
    already, and kills what stays. Then signals stay ignored after an `Interrupted` too, or one that comes as the
    process is on its way out would change its exit code.
    """

    def __init__(self, patient: bool = False) -> None:
        self.patient = patient
        self.received = 0
        self._deferred = False

    def __enter__(self) -> "Signals":
        self._former = {
            signum: signal.signal(signum, self._handle)
            for signum in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, *problem: object) -> None:
        leaving = self.patient and kind is not None and issubclass(kind, Interrupted)
        for signum, handler in self._former.items():
            signal.signal(signum, signal.SIG_IGN if leaving else handler)

    def _handle(self, signum: int, frame: types.FrameType | None) -> None:
        if self.received and self.patient:
            return
        if self.received:
            os._exit(128 + signum)
        self.received = signum
        signal.signal(
            signal.SIGCHLD, signal.SIG_DFL
        )  # torch raises from there as workers, signalled too, end
        if not self._deferred:
            raise Interrupted(signum)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Until the end of the block, which checks too, only `check` raises."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    def check(self) -> None:
        """Raises `Interrupted` if there was a signal."""
        if self.received:
            raise Interrupted(self.received)
