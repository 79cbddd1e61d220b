"""What the command line prints: results on stdout, progress, notices and errors on stderr.

Colour and moving bars appear on a terminal only; rich is imported when something is to be drawn.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

import click

from edgesparse.errors import EdgesparseError

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

PLAIN_WIDTH = 200
"""Columns of tables that go to a file or pipe, where nothing would wrap them."""

Tick = Callable[[float, str], None]
"""Told the share done (0 to 1) and what is being done."""


class Console:
    """The two streams, and how much is said: `verbosity` -1 quiet, 0 normal, 1 details, 2 everything."""

    def __init__(self, verbosity: int = 0) -> None:
        self.verbosity = verbosity

    def configure(self, verbosity: int) -> None:
        """Set how much is said, here and by the loggers of this package."""
        self.verbosity = verbosity
        logger = logging.getLogger("edgesparse")
        levels = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}
        logger.setLevel(levels.get(verbosity, logging.DEBUG))
        for old in [handler for handler in logger.handlers if isinstance(handler, _StderrHandler)]:
            logger.removeHandler(old)
        logger.addHandler(_StderrHandler())

    def result(self, text: str) -> None:
        """Print a line of the result."""
        click.echo(text)

    def notice(self, text: str) -> None:
        """Say something that is not the result; silent with -q."""
        if self.verbosity >= 0:
            click.echo(text, err=True)

    def detail(self, text: str) -> None:
        """Say what only -v asks for."""
        if self.verbosity >= 1:
            click.echo(text, err=True)

    def error(self, error: EdgesparseError) -> None:
        """Print an error in its three parts: what, why, and what to do."""
        click.echo(f"{click.style('error:', fg='red', bold=True)} {error.what}", err=True)
        for label, text in (("why:", error.why), ("fix:", error.fix)):
            if text:
                click.echo(f"  {label} {text}", err=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        title: str = "",
        text_columns: Sequence[str] = (),
    ) -> None:
        """Print a table on stdout. `text_columns` are set to the left and may wrap; the others to
        the right.
        """
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold"
        )
        for column in columns:
            text = column in text_columns
            table.add_column(column, justify="left" if text else "right", overflow="fold", no_wrap=not text)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console = _rich(sys.stdout)
        with console.capture() as captured:
            console.print(table)
        # click.echo, so that a closed pipe and captured output behave as for all other lines
        click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))

    def json(self, data: dict[str, Any], destination: str) -> None:
        """Write data as JSON to stdout ("-") or a file. Raises EdgesparseError if the file cannot
        be written.
        """
        text = json.dumps(data, indent=2, allow_nan=False)
        if destination == "-":
            click.echo(text)
            return
        self.write(text + "\n", destination)

    def write(self, text: str, destination: str) -> None:
        """Write a file, and say so. Raises EdgesparseError if it cannot be written; nothing half-written stays."""
        part = f"{destination}.part"
        try:
            with open(part, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(part, destination)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise EdgesparseError(f"cannot write {destination}", why=error.strerror or str(error)) from error
        self.notice(f"wrote {destination}")

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Tick]:
        """Show a bar with the time to go while the block runs; yields what to call with (share, text).

        Away from a terminal each new text is one line, told with -v only.
        """
        if self.verbosity < 0 or not sys.stderr.isatty():
            yield _plain_ticks(self.detail, title)
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=_rich(sys.stderr), transient=True) as bar:
            task = bar.add_task(title, total=1.0)

            def tick(share: float, text: str) -> None:
                bar.update(task, completed=share, description=f"{title}: {text}" if text else title)

            yield tick


class _StderrHandler(logging.Handler):
    """Log lines on whatever stderr is now."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"{record.levelname.lower()}: {record.getMessage()}", err=True)


def _plain_ticks(say: Callable[[str], None], title: str) -> Tick:
    last = ""

    def tick(share: float, text: str) -> None:
        nonlocal last
        if text != last:
            last = text
            say(f"{title}: {text}")

    return tick


def _rich(stream: IO[str]) -> RichConsole:
    from rich.console import Console as RichConsole

    return RichConsole(file=stream, width=None if stream.isatty() else PLAIN_WIDTH, highlight=False)
