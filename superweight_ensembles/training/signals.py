"""Ctrl-C and SIGTERM end a training after the step that runs, with everything saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from superweight_ensembles.errors import stop_now


class StopRequests:
    """Whether a signal has asked to stop, for as long as the context lasts; a second one stops at once.

    Handlers that a program has set itself stay; outside of the main thread none can be set.

    Args:
        heard: Whether to listen at all: where nothing can be saved, a signal does what it always does.

    Attributes:
        signal: The first signal's number; None while none has come.
    """

    def __init__(self, heard: bool = True) -> None:
        self.signal: int | None = None
        self._heard = heard
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if self._heard and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                held = signal.getsignal(number)
                if held in (signal.SIG_DFL, signal.default_int_handler, stop_now):
                    self._before[number] = held
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, held in self._before.items():
            signal.signal(number, held)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            stop_now(number, frame)
        self.signal = number
