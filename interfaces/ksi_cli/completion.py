"""Complete commands in a shell: ``ksi completion``."""

from typing import Annotated, Any, Final

import typer

from ksi_cli import output
from ksi_cli.main import VARIABLE
from ksi_cli.output import JsonFlag, UsageError
from ksi_client import Client, KsiError
from ksi_daemon.protocol.names import did_you_mean

PATIENCE_S: Final = 1.0  # who presses Tab does not want to wait
MANY: Final = 100

HOW: Final = {
    "bash": 'put into ~/.bashrc:  eval "$(ksi completion bash)"',
    "zsh": 'put into ~/.zshrc, below compinit:  eval "$(ksi completion zsh)"',
    "fish": "once:  ksi completion fish > ~/.config/fish/completions/ksi.fish",
}


def completion(
    shell: Annotated[
        str,
        typer.Argument(
            metavar="SHELL", help=f"{', '.join(HOW)}.", autocompletion=lambda: list(HOW)
        ),
    ],
    *,
    as_json: JsonFlag = False,
) -> None:
    """Print a script that has your shell complete commands.

    bash and zsh: put  eval "$(ksi completion bash)"  into ~/.bashrc or ~/.zshrc. fish: write it to
    ~/.config/fish/completions/ksi.fish.
    """
    if shell not in HOW:
        hint = did_you_mean(shell, HOW) or f"; there are: {', '.join(HOW)}"
        raise UsageError(f"nothing is known of the shell {shell!r}{hint}")
    from typer._completion_shared import get_completion_script  # noqa: PLC0415  seldom needed

    script = get_completion_script(prog_name="ksi", complete_var=VARIABLE, shell=shell)
    if as_json:
        output.write_json({"shell": shell, "script": script, "how": HOW[shell]})
    else:
        output.write(script)


# -- what fits -----------------------------------------------------------------------------------


def models(incomplete: str) -> list[str]:
    """Suggest models and aliases."""
    listed = _ask("model:list")
    names = [each["id"] for each in listed.get("models", ())] + list(listed.get("aliases", ()))
    return _fitting(names, incomplete)


def conversations(incomplete: str) -> list[tuple[str, str]]:
    """Suggest the conversations that were used last, with their titles."""
    listed = _ask("conversation:list", {"limit": MANY}).get("conversations", ())
    found = [(each["conversation_id"], output.clean(each["title"])) for each in listed]
    return [pair for pair in found if pair[0].startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Suggest the turns that were accepted last."""
    listed = _ask("completion:list", {"limit": MANY}).get("turns", ())
    return _fitting([each["run_id"] for each in listed], incomplete)


def tools(incomplete: str) -> list[str]:
    """Suggest tools."""
    listed = _ask("tool:list", {"all_tools": True}).get("tools", ())
    return _fitting([each["name"] for each in listed], incomplete)


def calls_in_doubt(incomplete: str) -> list[str]:
    """Suggest the calls that a person is to settle."""
    listed = _ask("tool:in_doubt").get("calls", ())
    return _fitting([each["call_id"] for each in listed], incomplete)


def calls_that_ask(incomplete: str) -> list[str]:
    """Suggest the calls that wait for a person's answer."""
    listed = _ask("tool:calls", {"status": "waiting", "limit": MANY}).get("calls", ())
    return _fitting([each["call_id"] for each in listed], incomplete)


def _fitting(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _ask(event: str, data: Any = None) -> dict[str, Any]:
    """Ask the daemon; what goes wrong is told when the command is run."""
    try:
        with Client(timeout_s=PATIENCE_S) as client:
            answer: dict[str, Any] = client.request(event, data)
    except (KsiError, OSError):
        return {}
    return answer
