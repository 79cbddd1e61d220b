"""The command line: the group of commands, and how a run of it ends.

Exit codes: 0 done, 1 failed, 2 usage, 3 numbers differ, 4 unsupported, 5 slower than the baseline, 130
interrupted, 143 and 129 ended by SIGTERM and SIGHUP. The commands live in `edgesparse.commands`; they
import what they need when they run, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import click

from edgesparse import __version__
from edgesparse.commands import (
    benching,
    building,
    comparing,
    demo,
    devices,
    evaluation,
    explaining,
    finetuning,
    inspection,
    listing,
    running,
    sparsifying,
    sweeping,
    web,
)
from edgesparse.console import Console
from edgesparse.errors import EdgesparseError

INTERRUPTED = 130


class Group(click.Group):
    """A group that lists its commands in the order of use, and guesses what a wrong name meant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.commands, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"No such command '{name}'.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgesparse")
def cli() -> None:
    """Make an exported ONNX model smaller and faster for the edge, and prove it.

    Results go to stdout; progress and logs to stderr.

    Exit codes: 0 done, 1 failed, 2 usage, 3 numbers differ, 4 unsupported, 5 slower than the baseline.
    """


for _command in (
    demo.demo,
    building.compile_,
    sparsifying.sparsify,
    finetuning.finetune,
    web.bundle,
    running.run,
    running.verify,
    inspection.inspect,
    evaluation.evaluation,
    benching.bench,
    explaining.profile,
    explaining.explain,
    explaining.predict,
    comparing.compare,
    sweeping.sweep,
    devices.devices,
    listing.targets,
    listing.patterns,
    listing.cache,
):
    cli.add_command(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv` (sys.argv's by default) and return the exit code. Never raises."""
    with ending_cleanly() as ended:
        code = _run(argv)
        return 128 + ended[0] if ended and code == INTERRUPTED else code


@contextlib.contextmanager
def ending_cleanly() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP end what runs as Ctrl-C does, so that nothing is left behind.

    Yields a list that holds the signal's number once it came. Signals that are ignored, as under nohup, stay so.
    """
    ended: list[int] = []
    before: dict[signal.Signals, signal.Handlers] = {}

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # a second one must not cut the cleaning short
        ended.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        kinds = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))
        before = {kind: signal.SIG_DFL for kind in kinds if kind and signal.getsignal(kind) == signal.SIG_DFL}
        for kind in before:
            signal.signal(kind, end)
    try:
        yield ended
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _run(argv: Sequence[str] | None) -> int:
    console = Console()
    try:
        result = cli.main(
            args=None if argv is None else list(argv),
            prog_name="edgesparse",
            standalone_mode=False,
            obj=console,
        )
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message())
        return 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except EdgesparseError as error:
        _close(console, error)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; nothing half-written was kept", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of our output is gone (`edgesparse ... | head`): leave quietly, let no flush fail at exit
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _unexpected(console, error)


def _close(console: Console, error: EdgesparseError) -> None:
    console.error(error)
    if console.verbosity >= 2:
        click.echo("".join(traceback.format_exception(error)), err=True)


def _unexpected(console: Console, error: Exception) -> int:
    """Tell of an error that nobody foresaw: a full disk or memory as such, the rest as our bug with
    its log.
    """
    if isinstance(error, MemoryError):
        known = EdgesparseError("out of memory", fix="close other programs, or take a smaller model")
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" writing {error.filename}" if error.filename else ""
        known = EdgesparseError(f"the disk is full{where}", fix="free some space, or choose another --output")
    elif isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        known = EdgesparseError(f"no permission: {error.filename}", why=error.strerror or "")
    else:
        text = "".join(traceback.format_exception(error))
        if console.verbosity >= 2:
            click.echo(text, err=True)
        known = EdgesparseError(
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            why="this is a bug in edgesparse",
            fix=f"please report it{_write_log(text)}",
        )
    console.error(known)
    return known.exit_code


def _write_log(text: str) -> str:
    """Keep a traceback in the user's log folder, else in the temporary one; returns words that say where."""
    import platformdirs

    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    for folder in (Path(platformdirs.user_log_dir("edgesparse")), Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"edgesparse {__version__}\n{text}", encoding="utf-8")
            return f" with {folder / name}"
    return "; -vv shows the traceback"
