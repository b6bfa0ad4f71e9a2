"""The command lines of the benchmarks: argparse, its errors one line as those of `midus`."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line on stderr, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        print(f"midus: {line}; {self.prog} --help says more", file=sys.stderr)
        raise SystemExit(2)
