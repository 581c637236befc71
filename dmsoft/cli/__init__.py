# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: a group that loads a verb's module when the verb is used, and the one place where errors become
text and exit codes."""

import errno
import importlib
import json
import os
import sys
import threading
from typing import Any

# numpy's linear algebra would start a thread a core, and every one of them would be locked into memory by a barrier.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import click

from dmsoft import __version__
from dmsoft.cli.surroundings import inherit, settle
from dmsoft.errors import DmsoftError, NotRootError, OutOfMemoryError
from dmsoft.units import KIB

# A barrier locks the stack of every thread whole, those that have ended lately as well: 8 MiB each by default.
threading.stack_size(512 * KIB)

VERBS = (
    "create", "add", "remove", "start", "stop", "destroy", "status", "wait", "stale", "resync", "attach", "eject",
    "verify", "recover", "devices", "examine", "doctor", "monitor", "explain",
)  # fmt: skip
_ROOTLESS = {"explain"}
_MEMORY_HINT = "Nothing new was promised. End something else, or raise the limit this runs under, and run it again."


class Verbs(click.Group):
    """A group whose verbs live in modules of their own name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = getattr(importlib.import_module(f"dmsoft.cli.{cmd_name}"), cmd_name)
        return command if isinstance(command, click.Command) else None

    def invoke(self, ctx: click.Context) -> Any:
        verb = ctx._protected_args[0] if ctx._protected_args else None
        asks_help = any(word in ("--help", "-h") for word in ctx.args)
        if verb in VERBS and verb not in _ROOTLESS and not asks_help and os.geteuid() != 0:
            raise NotRootError(f"dmsoft {verb} needs root.", hint="Run it with sudo.")
        return super().invoke(ctx)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dmsoft")
@click.option("--debug", is_flag=True, help="Show every program that is run, and a trace of unexpected errors.")
def dmsoft(debug: bool) -> None:
    """Soft mirrors: the primary never waits, secondaries catch up only what they missed."""
    if debug:
        import logging

        logging.basicConfig(level=logging.DEBUG, format="%(message)s", stream=sys.stderr)


def main() -> None:
    """Entry point; every way out has a documented exit code."""
    inherit()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:  # noqa: PLR0911 - one way out a kind of error
    """Run one command line and return its exit code; errors go to standard error, as JSON if JSON was asked for."""
    try:
        settle(arguments)
        code = dmsoft.main(args=arguments, prog_name="dmsoft", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as err:
        return err.exit_code
    except click.Abort as err:
        interrupted = isinstance(err.__cause__, KeyboardInterrupt)  # else it was the answer to a question
        text = "Interrupted; see `dmsoft status`." if interrupted else "Cancelled; nothing was changed."
        click.echo(text, err=True)
        return 130
    except click.ClickException as err:
        _report(arguments, "usage", err.format_message(), _usage_hint(err))
        return err.exit_code
    except DmsoftError as err:
        _report(arguments, err.code, err.message, err.hint or f"`dmsoft explain {err.code}` says what to do.")
        return err.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as err:
        if "--debug" in arguments:
            raise
        if _lacks_memory(err):
            _report(arguments, OutOfMemoryError.code, "There is not enough memory to go on.", _MEMORY_HINT)
            return OutOfMemoryError.exit_code
        _report(arguments, "unexpected", f"Something unexpected happened: {type(err).__name__}: {err}.",
                "Run it again with --debug after dmsoft, and report what it shows.")  # fmt: skip
        return 1


def _lacks_memory(err: Exception) -> bool:
    """Whether it is for want of memory; the last is what a thread that cannot be started raises."""
    match err:
        case MemoryError():
            return True
        case OSError():
            return err.errno == errno.ENOMEM
        case _:
            return isinstance(err, RuntimeError) and "can't start new thread" in str(err)


def _usage_hint(err: click.ClickException) -> str | None:
    if isinstance(err, click.UsageError) and err.ctx is not None:
        return f"Try '{err.ctx.command_path} --help'."
    return None


def _report(arguments: list[str], code: str, message: str, hint: str | None) -> None:
    from dmsoft.report.output import echo, say

    if "--json" in arguments:
        echo(json.dumps({"error": {"code": code, "message": message, "hint": hint}}), err=True)
        return
    say(f"Error: {message}", err=True, hang=7)
    if hint:
        say(f"Hint: {hint}", err=True, hang=6)
