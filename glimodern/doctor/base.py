"""Running checks, and the report of their results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


class CheckError(Exception):
    """Raised by a check that fails, with the remedy."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.remedy = remedy


@dataclass(frozen=True)
class Check:
    """The result of one check. ok: None if it was not run, because a check that it needs failed."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


class Checks:
    """Runs checks and records their results. A check runs unless one that it needs has failed."""

    def __init__(self) -> None:
        self.done: list[Check] = []
        self._values: dict[str, Any] = {}

    def run(self, name: str, check: Callable[..., tuple[Any, str]], remedy: str, needs: tuple[str, ...] = ()) -> None:
        """Run a check and record its result.

        check: (values of the checks in `needs`) -> (value, detail). It may raise CheckError, or any error of the code
        under test. remedy: of all errors but CheckError, which has its own. needs: names of earlier checks.
        """
        missing = [other for other in needs if other not in self._values]
        if missing:
            self.done.append(Check(name, None, f"not run: it needs {' and '.join(missing)}"))
            return
        try:
            self._values[name], detail = check(*(self._values[other] for other in needs))
        except CheckError as failure:
            self.done.append(Check(name, False, str(failure), failure.remedy))
        except Exception as error:  # the code under test may raise any error
            message = " ".join(str(error).split())
            own = isinstance(error, (ValueError, FileNotFoundError))  # this package's messages are complete
            self.done.append(Check(name, False, message if own else f"{type(error).__name__}: {message}", remedy))
        else:
            self.done.append(Check(name, True, detail))


@dataclass(frozen=True)
class Report:
    """The results of all checks.

    machine: facts by name, with the versions of packages and the backends of operators. checks: in the order of
    running.
    """

    machine: dict[str, Any]
    checks: list[Check]

    @property
    def ok(self) -> bool:
        """Whether all checks were run and passed."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as data for JSON."""
        return {"ok": self.ok, "machine": self.machine, "checks": [asdict(check) for check in self.checks]}
