"""Single-threaded computation in a process forked from one that holds a model.

A fork copies memory, not threads. In the child, OpenMP, the Rust tokenizers and PyTorch's own operators still expect
the threads of the parent's pools and would wait for them forever. Two cases have no such limit: a process started with
multiprocessing "spawn", and a model loaded after the fork from a parent without a model.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Protocol
from weakref import WeakSet

_LOGGER = logging.getLogger("glimodern")


class Forked(Protocol):
    """Object with state to reset in a forked process, such as a lock that a thread of the parent holds."""

    def after_fork(self) -> None: ...


_watching = False
_forked = False
_parent_threads = 1
_warned = False
_holders: WeakSet[Forked] = WeakSet()


def watch_forks(holder: Forked | None = None) -> None:
    """Register the fork handler; in each forked process it calls `holder.after_fork()`. Keeps only a weak reference."""
    global _watching
    if holder is not None:
        _holders.add(holder)
    if not _watching and hasattr(os, "register_at_fork"):
        _watching = True
        os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    # Runs at the fork, not at the first prediction: loading a checkpoint and torch's own operators would block too.
    global _forked, _parent_threads
    _forked = True
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # "true" would wait for threads of the parent's pool
    torch = sys.modules.get("torch")
    if torch is not None:
        _parent_threads = max(_parent_threads, torch.get_num_threads())
        torch.set_num_threads(1)
    for holder in list(_holders):
        holder.after_fork()


def keep_to_own_threads() -> None:
    """In a forked process, limit torch to one thread and warn once; call it before multi-threaded work."""
    if _forked:
        _use_one_thread()


def _use_one_thread() -> None:
    global _warned
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
    if _parent_threads > 1 and not _warned:
        _warned = True
        _LOGGER.warning(
            "this process was forked from one with a model and does not have its threads: it runs on 1 thread, "
            'not %d; to use more, start it with multiprocessing "spawn" or load the model only after the fork',
            _parent_threads,
        )
