"""A process that was forked from one with a model: it computes on one thread.

A fork copies memory, not threads. OpenMP and the Rust tokenizers go on counting on the threads of the parent's pools,
and wait for them for ever; so do PyTorch's own operators. A process that is started afresh ("spawn", or a model that
is loaded after the fork from a parent without one) has no such limit.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Protocol
from weakref import WeakSet

_LOGGER = logging.getLogger("glimodern")


class Forked(Protocol):
    """What has something to put right in a forked process, such as a lock that a thread of the parent holds."""

    def after_fork(self) -> None: ...


_watching = False
_forked = False
_threads_before = 1  # what the parent ran on
_told: WeakSet[Forked] = WeakSet()


def watch_forks(holder: Forked | None = None) -> None:
    """From now on, notice when this process is forked, and tell `holder` in the new process."""
    global _watching
    if holder is not None:
        _told.add(holder)
    if not _watching and hasattr(os, "register_at_fork"):
        _watching = True
        os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    # Here, not at the first prediction: loading a checkpoint and torch's own operators would wait for ever too.
    global _forked, _threads_before
    _forked = True
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # "true" would wait for the threads of the parent's pool
    torch = sys.modules.get("torch")
    if torch is not None:
        _threads_before = max(_threads_before, torch.get_num_threads())
        torch.set_num_threads(1)
    for holder in list(_told):
        holder.after_fork()


def keep_to_own_threads() -> None:
    """Call before work that may run on several threads: a forked process then runs it on one, and says so once."""
    if _forked:
        _use_one_thread()


def _use_one_thread() -> None:
    import torch

    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
    if _threads_before > 1 and not _said:
        _said.append(True)
        _LOGGER.warning(
            "this process was forked from one with a model, whose threads it has not: it runs on 1 thread, not %d; "
            'start it afresh (multiprocessing "spawn"), or load the model after the fork only, to use more',
            _threads_before,
        )


_said: list[bool] = []
