"""Is this machine fit to run the package, and is that folder a whole checkpoint? Each failure with its remedy.

`examine(model)` gives a `Report`; `python -m glimodern.doctor [MODEL]` prints it. Nothing heavy is imported here, so
that a package that is not there is a line of the report.
"""

from __future__ import annotations

from .base import Check, CheckError, Checks, Report

__all__ = ["Check", "CheckError", "Report", "examine"]


def examine(model: str | None = None) -> Report:
    """Check this machine, and the checkpoint (a folder or a hub name) if one is given."""
    from .checkpoint import check_checkpoint
    from .machine import check_machine, describe_machine

    checks = Checks()
    check_machine(checks)
    if model is not None:
        check_checkpoint(checks, model)
    return Report(describe_machine(), checks.done)
