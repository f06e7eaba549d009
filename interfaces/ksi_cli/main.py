"""The ``ksi`` command: reads the command line, and ends every error in one sentence."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from ksi_cli import output
from ksi_cli.lazy import LazyGroup
from ksi_client import KsiError

VARIABLE = "_KSI_COMPLETE"  # set by the script of ksi completion when a shell asks what fits

app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def ksi(
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Run AI agents the way an init system runs services.

    Every command takes --json. Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 not running, 4 not
    found, 5 not allowed, 6 busy or away (try again), 7 not in time, 130 interrupted.
    """


def run() -> None:
    """Run the command line of this process; the console script ``ksi``."""
    sys.exit(main(sys.argv[1:]))


def main(words: Sequence[str]) -> int:
    """Run a command line and return its exit code."""
    as_json = "--json" in words
    for stream in (sys.stdout, sys.stderr):
        # A terminal that can't show a character gets it escaped, and no traceback.
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        code = invoke(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        silence()
        return output.FAILED
    except OSError as error:
        silence()
        where = f": {error.filename}" if error.filename else ""
        output.fail(KsiError(f"{error.strerror or error}{where}"), as_json=False)
        return output.FAILED
    except KeyboardInterrupt:
        return output.INTERRUPTED
    except KsiError as error:
        output.fail(error, as_json=as_json)
        return output.exit_code(error)
    except Exception as error:  # the outermost boundary: a user sees no traceback
        if sys.flags.dev_mode:
            raise
        message = f"{type(error).__name__}: {error} (traceback: python -X dev -m ksi_cli …)"
        output.fail(KsiError(message), as_json=as_json)
        return output.FAILED


def invoke(words: Sequence[str]) -> int:
    """Run a command line.

    Raises:
        KsiError: It failed, or it was wrong.
    """
    if list(words) == ["--version"]:
        from importlib.metadata import version  # noqa: PLC0415  slow, and seldom needed

        output.write(f"ksi {version('ksi')}")
        return 0
    if VARIABLE in os.environ:
        return complete()
    try:
        command = typer.main.get_command(app)
        code = command.main(list(words) or ["--help"], prog_name="ksi", standalone_mode=False)
    except typer.Abort:
        return output.INTERRUPTED
    except typer.TyperException as error:
        path = getattr(getattr(error, "ctx", None), "command_path", "ksi")
        message = sentence(error.format_message())
        hint = "" if message.endswith("?") else f"; see: {path} --help"
        raise output.UsageError(message + hint) from None
    return code if isinstance(code, int) else 0


def complete() -> int:
    """Suggest what fits to the shell that asks; whatever is wrong, it gets nothing."""
    from typer._completion_classes import completion_init  # noqa: PLC0415  seldom needed

    completion_init()
    try:
        typer.main.get_command(app).main([], prog_name="ksi", complete_var=VARIABLE)
    except (KsiError, typer.TyperException):
        return output.FAILED
    return 0


def sentence(message: str) -> str:
    """Put a message of Typer's, or of what it checks values with, into our words."""
    for wording, plain in WORDINGS:
        message = re.sub(wording, plain, message)
    return message[:1].lower() + message[1:].rstrip(".")


def nearest(found: re.Match[str]) -> str:
    """Write what was perhaps meant."""
    return f"; did you mean {found[1].replace(', ', ' or ')}?".replace("'", "")


WORDINGS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r": Input should be (.*?)(, unable to parse.*)?$", r": it should be \1"),
    (r": Value error, ", ": "),
    (r"^No such", "there is no"),
    (r" \(Possible options: (.*)\)$", r". Did you mean \1?"),
    (r"\. Did you mean (.*)\?$", nearest),
)


def silence() -> None:
    """Point stdout to nowhere: who read it has left, and Python flushes it once more at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
