"""Checks, run one after the other, and the report of what they found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


class CheckError(Exception):
    """What a check found wrong, and its remedy."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.remedy = remedy


@dataclass(frozen=True)
class Check:
    """One check. ok: None for one that could not run, because of one that failed; remedy: of a failure."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


class Checks:
    """Runs checks one after the other, whatever becomes of those before, and keeps what they find."""

    def __init__(self) -> None:
        self.done: list[Check] = []
        self._values: dict[str, Any] = {}

    def run(self, name: str, look: Callable[..., tuple[Any, str]], remedy: str, needs: tuple[str, ...] = ()) -> None:
        """look(*the values of the checks in `needs`) -> (value, detail). It raises CheckError, or whatever error the
        thing it looks at raises, whose remedy is then `remedy`."""
        lacking = [other for other in needs if other not in self._values]
        if lacking:
            self.done.append(Check(name, None, f"not run: it needs {' and '.join(lacking)}"))
            return
        try:
            self._values[name], detail = look(*(self._values[other] for other in needs))
        except CheckError as failure:
            self.done.append(Check(name, False, str(failure), failure.remedy))
        except Exception as error:  # a check is there to meet any error
            said = " ".join(str(error).split())
            known = isinstance(error, (ValueError, FileNotFoundError))  # of this package: they say it all
            self.done.append(Check(name, False, said if known else f"{type(error).__name__}: {said}", remedy))
        else:
            self.done.append(Check(name, True, detail))


@dataclass(frozen=True)
class Report:
    """machine: facts by name, versions of packages and operators' backends among them; checks in the order run."""

    machine: dict[str, Any]
    checks: list[Check]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, "machine": self.machine, "checks": [asdict(check) for check in self.checks]}
