"""TODO docstring."""

from typing import TYPE_CHECKING

from glimodern import cli

from .loop import main

if TYPE_CHECKING:
    pass


if __name__ == "__main__":
    cli.run(main)
