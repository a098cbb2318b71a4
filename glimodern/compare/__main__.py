"""The command line of comparisons."""

from glimodern import cli

from .loop import main

if __name__ == "__main__":
    cli.run(main)
