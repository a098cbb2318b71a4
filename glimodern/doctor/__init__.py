"""Checks of this machine and of a checkpoint. Every failure is reported with its remedy.

`examine(model)` returns a `Report`; `python -m glimodern.doctor [MODEL]` prints it. Importing this package imports no
third-party package, so that a missing one is a line of the report.
"""

from __future__ import annotations

from .base import Check, CheckError, Checks, Report

__all__ = ["Check", "CheckError", "Report", "examine"]


def examine(model: str | None = None) -> Report:
    """Check this machine, and a checkpoint if one is given. model: folder or hub name."""
    from .checkpoint import check_checkpoint
    from .machine import check_machine, describe_machine

    checks = Checks()
    check_machine(checks)
    if model is not None:
        check_checkpoint(checks, model)
    return Report(describe_machine(), checks.done)
