"""Writing a trial's states by a thread of its own, so that training waits for a copy alone.

One copy of the state at most is held besides the training's own: it is made in the thread that trains and freed once
its files are whole. What brings the folder to an object store runs after that in the same thread, one after the other,
so that nothing is uploaded that the next state is just replacing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from cryobench.workers.record.checkpoint import Checkpoints, TrainingState


@dataclass(frozen=True)
class _Copy:
    state: TrainingState
    is_best: bool


class CheckpointWriter:
    """Saves states into a trial's folder in the background, in the order in which they were given.

    What goes wrong in the thread is raised by the next call of any method: the files before it are whole still. Its
    methods belong to the one thread that trains.

    Args:
        checkpoints: where they go.
        after_save: called in the thread after each state and each `upload`; it may take long.
    """

    def __init__(self, checkpoints: Checkpoints, after_save: Callable[[], None] = lambda: None) -> None:
        self._checkpoints, self._after_save = checkpoints, after_save
        self._changed = threading.Condition()
        self._waiting: _Copy | None = None
        self._writing = self._uploading = self._upload_asked = self._closed = False
        self._error: BaseException | None = None
        self._cost_s = 0.0
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)

    @property
    def busy(self) -> bool:
        """Whether the last state is still on its way."""
        with self._changed:
            return self._waiting is not None or self._writing or self._uploading

    @property
    def failed(self) -> bool:
        """Whether something went wrong that the next call will raise."""
        return self._error is not None

    @property
    def cost_s(self) -> float:
        """Seconds that the last state took to be written and uploaded."""
        return self._cost_s

    def offer(self, state: TrainingState) -> bool:
        """Save a state that need not be saved: not while the last one is still on its way. Whether it is taken."""
        with self._changed:
            self._raise_error()
            if self.busy:
                return False
        self._hand_over(_Copy(state.on_host(), is_best=False))
        return True

    def save(self, state: TrainingState, is_best: bool) -> None:
        """Save a state in any case, with its weights as the best ones if they are.

        It takes the place of one that waits; a copy that is being written is waited for. So are best weights that wait,
        unless these are better.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.failed or not (self._writing or self._best_waits(unless=is_best)))
            self._raise_error()
            self._waiting = None  # before the next copy is made: never two of them
        self._hand_over(_Copy(state.on_host(), is_best))

    def upload(self) -> None:
        """Have ``after_save`` called soon, though no state was saved."""
        with self._changed:
            self._raise_error()
            self._upload_asked = True
            self._changed.notify_all()

    def wait_until_written(self) -> None:
        """Until the last state's files are whole; they may be on their way to the object store still."""
        with self._changed:
            self._changed.wait_for(lambda: (self._waiting is None and not self._writing) or self.failed)
            self._raise_error()

    def flush(self) -> None:
        """Until nothing is left to be done."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_idle() or self.failed)
            self._raise_error()

    def __enter__(self) -> CheckpointWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what was given, and end the thread. After an interruption only what is begun is finished."""
        with self._changed:
            if kind is not None and not issubclass(kind, Exception):
                self._waiting, self._upload_asked = None, False
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if kind is None:
            self._raise_error()

    def _hand_over(self, copy: _Copy) -> None:
        with self._changed:
            self._waiting = copy
            self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _best_waits(self, unless: bool) -> bool:
        return self._waiting is not None and self._waiting.is_best and not unless

    def _is_idle(self) -> bool:
        return self._waiting is None and not (self._writing or self._uploading or self._upload_asked)

    def _run(self) -> None:
        try:
            while self._one_round():
                pass
        except BaseException as error:  # raised in the thread that trains
            with self._changed:
                self._error = error
                self._waiting, self._writing, self._uploading = None, False, False
                self._changed.notify_all()

    def _one_round(self) -> bool:
        """Save or upload what there is to; False once closed and done."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._upload_asked or self._closed)
            copy, self._waiting = self._waiting, None
            if copy is None and not self._upload_asked:
                return False
            self._writing, self._upload_asked = copy is not None, False
        began = time.monotonic()
        saved = copy is not None
        if copy is not None:
            self._checkpoints.save(copy.state, copy.is_best)
            del copy
        with self._changed:
            self._writing, self._uploading = False, True
            self._changed.notify_all()
        self._after_save()
        with self._changed:
            self._uploading = False
            if saved:
                self._cost_s = time.monotonic() - began
            self._changed.notify_all()
        return True
