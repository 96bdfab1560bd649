"""Flags of the scripts beside this file: what is wrong is said in one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def at_least(least: int):
    def integer(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is less than {least}")
        return number

    return integer


def checked(kind: type, holds: Callable[[float], bool], wish: str) -> Callable[[str], float]:
    """A reader of one flag's number."""

    def read(text: str) -> float:
        number = kind(text)
        if not holds(number):
            raise argparse.ArgumentTypeError(f"{text} is not {wish}")
        return number

    read.__name__ = kind.__name__  # argparse names it when the text is no number
    return read
