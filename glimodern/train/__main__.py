"""The command line of training."""

import logging
import sys
from collections.abc import Sequence

from glimodern import cli

from .config import parse_train_config
from .interrupts import Stopped
from .loop import train
from .memory import keep_freed_memory


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    keep_freed_memory()
    try:
        train(parse_train_config(arguments))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(stopped.exit_code) from None


if __name__ == "__main__":
    cli.run(main)
