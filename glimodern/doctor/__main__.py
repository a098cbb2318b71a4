"""Command line of the doctor: `python -m glimodern.doctor [MODEL]`. The exit status is 1 if a check fails, else 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from glimodern import cli
from glimodern.cli.outputs import check_output_file, checkpoint_files, write_report
from glimodern.display import console

from . import Report, examine


@dataclass(frozen=True)
class DoctorConfig:
    """Settings of `python -m glimodern.doctor`."""

    model: tyro.conf.Positional[str | None] = None
    """Folder or hub name of a checkpoint to check. Default: check the machine only."""
    json: str | None = None
    """File to write the report to, as JSON. Its folder is created."""


def render(report: Report) -> Any:
    """Build the report for a terminal. Text from files and errors is never interpreted as markup."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from glimodern.display import cell, printable

    facts = Table(show_header=False, box=None, pad_edge=False)
    for name, value in report.machine.items():
        if name == "backends":
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        facts.add_row(cell(name, "bold"), cell(shown or "none"))
    backends = Table("device", "operator", "backend", "isa", "why", title="Operators", title_justify="left")
    for device, operators in report.machine.get("backends", {}).items():
        for name, info in operators.items():
            backends.add_row(*map(cell, (device, name, info["backend"], info["isa"], info["why"])))
    lines = []
    for check in report.checks:
        mark, style = {True: ("ok     ", "green"), False: ("FAILED ", "bold red"), None: ("-      ", "dim")}[check.ok]
        lines.append(Text.assemble((mark, style), (check.name, "bold"), printable(f": {check.detail}")))
        if check.remedy:
            lines.append(cell(f"       remedy: {check.remedy}"))
    failed = sum(check.ok is False for check in report.checks)
    verdict = "no check failed" if report.ok else f"{failed} of {len(report.checks)} checks failed"
    return Group(facts, backends, *lines, Text(verdict, style="bold green" if report.ok else "bold red"))


def main(arguments: Sequence[str] | None = None) -> None:
    config = tyro.cli(
        Annotated[DoctorConfig, tyro.conf.OmitArgPrefixes], args=arguments, prog="python -m glimodern.doctor"
    )
    reads = [] if config.model is None else checkpoint_files(config.model)
    output = None if config.json is None else check_output_file("--json", config.json, reads)
    report = examine(config.model)
    console().print(render(report), soft_wrap=True)
    if output is not None:
        write_report(output, report.to_dict())
    if not report.ok:
        raise SystemExit(1)


if __name__ == "__main__":
    cli.run(main)
