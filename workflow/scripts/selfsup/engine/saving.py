"""When and how a job saves: the state is copied to the host at once, and written to disk while training goes on."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch

from selfsup.engine.checkpoint import save_checkpoint
from selfsup.engine.distributed import Ranks
from selfsup.errors import UserError
from selfsup.job.attempt import Attempt
from selfsup.segments import write_card

logger = logging.getLogger(__name__)


class Decision(IntEnum):
    """What all ranks do after a step: the highest of the values that they ask for."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class Saver:
    """Decides after each step whether to save or stop, and writes rank 0's checkpoints. Collective, except `finish`."""

    def __init__(self, ranks: Ranks, attempt: Attempt, minutes: float):
        """minutes: between rolling checkpoints."""
        self._ranks, self._attempt, self._interval = ranks, attempt, minutes * 60
        self._saved = time.monotonic()
        self._copy: Any = None
        self._thread: threading.Thread | None = None
        self._problem: UserError | None = None  # of the background write; examined before the next write

    def decide(self) -> Decision:
        """Return what to do now, the same on all ranks."""
        due = self._ranks.is_main and (time.monotonic() - self._saved > self._interval or self._problem is not None)
        wish = Decision.STOP if self._attempt.stop.reason else Decision.SAVE if due else Decision.GO_ON
        return Decision(self._ranks.highest(wish))

    def save(
        self,
        path: Path,
        state: Callable[[], dict[str, Any]],
        card: Mapping[str, Any],
        *,
        wait: bool,
        then: Callable[[], None],
        note: Callable[[Path, Mapping], None] = write_card,
    ) -> None:
        """Write `state()` to `path`, and `card`, which has a "step", by `note`; call `then` once the file is on disk.

        wait: return when the file is on disk, because the job ends after it; otherwise write in the background. If the
        previous background write has failed, this one waits too, and raises UserError if it fails as well.
        """
        began = time.monotonic()
        if wait:
            self._attempt.stop_listening()
        if self._ranks.is_main:
            failed = self.finish()
            if failed:
                logger.info("trying again with the newest state")
            self._attempt.check_lock()
            if wait or failed:
                self._write(path, state(), card, then, began, note)
            else:
                self._copy = host_copy(state(), self._copy)
                work = (path, self._copy, card, then, began, note)
                self._thread = threading.Thread(target=self._write_in_background, args=work, name="checkpoint")
                self._thread.start()
            self._attempt.add_stall(time.monotonic() - began)
        self._saved = time.monotonic()

    def close(self) -> None:
        """Wait for the background write, however the training ended: the lock is released after it."""
        self._attempt.stop_listening()
        self.finish()

    def finish(self) -> bool:
        """Wait for the background write. Returns whether it has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        problem, self._problem = self._problem, None
        if problem is not None:
            logger.warning("%s", problem)
        return problem is not None

    def _write_in_background(self, path: Path, *work) -> None:
        try:
            self._write(path, *work)
        except UserError as error:
            self._problem = error
        except Exception as error:  # from `note` or `then`; a thread would lose it
            self._problem = UserError(f"{path}: {type(error).__name__}: {error}")

    def _write(
        self,
        path: Path,
        state: dict[str, Any],
        card: Mapping[str, Any],
        then: Callable[[], None],
        began: float,
        note: Callable,
    ) -> None:
        waited = time.monotonic() - began
        save_checkpoint(path, state, card, note)
        self._attempt.step_saved(card["step"])
        then()
        megabytes, seconds = path.stat().st_size / 1e6, time.monotonic() - began
        logger.debug("saved %s: %.1f MB in %.2f s, training held up %.2f s", path.name, megabytes, seconds, waited)


def host_copy(value: Any, former: Any = None) -> Any:
    """Return a copy of nested dicts and lists with all tensors in host memory, reusing `former`'s memory if it fits.

    Tensors on a GPU are copied asynchronously into page-locked memory, and the call waits for the last copy.
    """
    copied = _copied(value, former)
    if torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()
    return copied


def _copied(value: Any, former: Any) -> Any:
    if isinstance(value, torch.Tensor):
        fits = isinstance(former, torch.Tensor) and (former.shape, former.dtype) == (value.shape, value.dtype)
        target = former if fits else torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return target.copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        old = former if isinstance(former, dict) else {}
        return {key: _copied(part, old.get(key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        old = former if isinstance(former, list | tuple) and len(former) == len(value) else [None] * len(value)
        return type(value)(_copied(part, other) for part, other in zip(value, old, strict=True))
    return value
