"""The command line as a whole: help, and how every run of it ends."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from edgesparse import cli
from edgesparse.console import Console
from edgesparse.errors import CompileError, EdgesparseError, UnsupportedError

Run = Callable[..., tuple[int, str, str]]
FakePipeline = Callable[[Callable[..., Any]], None]


def raising(error: BaseException) -> Callable[..., Any]:
    def act(*_: Any, **__: Any) -> Any:
        raise error

    return act


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from edgesparse.cli import main\n"
        "assert main(['--help']) == 0\n"
        "for command in ('compile', 'bench', 'demo'): assert main([command, '--help']) == 0\n"
        "spent = time.perf_counter() - start\n"
        "heavy = {'tvm', 'torch', 'onnx', 'onnxruntime', 'onnx_ir', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(spent, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stderr) < 0.5


def test_import_of_the_package_loads_nothing() -> None:
    code = "import sys, edgesparse; assert not {'numpy', 'tvm', 'onnx', 'click'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_running_as_a_module() -> None:
    command = [sys.executable, "-m", "edgesparse", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("edgesparse, version ")


def test_help_lists_the_commands_in_order_of_use(run: Run) -> None:
    code, out, _ = run("--help")
    names = [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines() if line.strip()]
    assert code == 0
    assert names == list(cli.cli.commands)
    assert names[:2] == ["demo", "compile"]
    assert run()[:2] == (0, out)


def test_every_command_explains_its_options(run: Run) -> None:
    for name, command in cli.cli.commands.items():
        code, out, _ = run(name, "--help")
        assert code == 0
        assert command.help
        assert "--json" in out
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{name} {option.name}"


def test_a_wrong_command_is_answered_with_a_guess(run: Run) -> None:
    code, out, err = run("inspekt")
    assert (code, out) == (2, "")
    assert "Did you mean 'inspect'?" in err
    assert "Did you mean" not in run("zzz")[2]


def test_wrong_options(run: Run) -> None:
    assert run("targets", "--nonsense")[0] == 2
    assert run("compile")[0] == 2
    code, _, err = run("compile", "--json", "model.onnx")
    assert code == 2
    assert "does not end in .json" in err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (CompileError("layer 'a': no code", why="because", fix="do this"), 1, ["no code", "why: because", "fix: do"]),
        (UnsupportedError("op Foo"), 4, ["error: op Foo"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
        (MemoryError(), 1, ["out of memory"]),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, ["disk is full writing /x/y"]),
        (OSError(errno.EACCES, "Permission denied", "/x/y"), 1, ["no permission: /x/y"]),
    ],
)
def test_how_errors_are_told(
    run: Run, fake_pipeline: FakePipeline, error: BaseException, code: int, words: list[str]
) -> None:
    fake_pipeline(raising(error))
    found, out, err = run("compile", "model.onnx")
    assert (found, out) == (code, "")
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_an_unforeseen_error_is_called_a_bug_and_logged(run: Run, fake_pipeline: FakePipeline, tmp_path: Path) -> None:
    fake_pipeline(raising(RuntimeError("two\nlines")))
    code, _, err = run("compile", "model.onnx")
    assert code == 1
    assert "error: RuntimeError: two lines" in err
    assert "this is a bug" in err
    assert "Traceback" not in err
    [log] = (tmp_path / "state").rglob("crash-*.log")
    assert str(log) in err
    assert "Traceback" in log.read_text()
    assert "Traceback" in run("compile", "model.onnx", "-vv")[2]


def test_where_no_log_can_be_written(run: Run, fake_pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pipeline(raising(RuntimeError()))
    monkeypatch.setattr(Path, "write_text", raising(OSError()))
    assert "-vv shows the traceback" in run("compile", "model.onnx")[2]


def test_details_of_a_foreseen_error_only_when_asked(run: Run, fake_pipeline: FakePipeline) -> None:
    fake_pipeline(raising(CompileError("no code")))
    assert "Traceback" in run("compile", "model.onnx", "-vv")[2]


def test_a_reader_that_goes_away() -> None:
    command = f"set -o pipefail; '{sys.executable}' -m edgesparse patterns | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_no_colour_and_no_bar_away_from_a_terminal(run: Run) -> None:
    _, out, err = run("patterns")
    assert "\x1b" not in out + err
    assert err == ""


def test_quiet_and_verbose(capfd: pytest.CaptureFixture[str]) -> None:
    for verbosity, words in ((-1, ""), (0, "n"), (1, "nd"), (2, "nd")):
        console = Console()
        console.configure(verbosity)
        console.notice("n")
        console.detail("d")
        logging.getLogger("edgesparse.x").debug("g")
        out, err = capfd.readouterr()
        assert out == ""
        assert err.replace("\n", "") == words + ("debug: g" if verbosity == 2 else "")
    Console().configure(0)


def test_an_error_is_told_in_three_parts(capfd: pytest.CaptureFixture[str]) -> None:
    Console().error(EdgesparseError("what", why="why", fix="fix"))
    assert capfd.readouterr().err == "error: what\n  why: why\n  fix: fix\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Console().progress("work") as tick:
        tick(0.5, "half")
        tick(1.0, "")
    assert capsys.readouterr().out == ""
