"""Talk to a model: ``ksi chat``."""

import asyncio
import os
import signal
import sys
from typing import Annotated

import typer

from ksi_cli import chat_commands, completion, output, turns
from ksi_cli.chat_input import Input, LinesInput, TerminalInput
from ksi_cli.chat_screen import PlainScreen, RichScreen, Screen
from ksi_cli.chat_session import Left, Session
from ksi_cli.connection import connect_async
from ksi_cli.output import UsageError
from ksi_client import AsyncClient, KsiError


def chat(
    *,
    agent: Annotated[
        str | None, typer.Option(metavar="AGENT", help="Whom to talk to; its tools and rules hold.")
    ] = None,
    user_id: Annotated[
        str | None, typer.Option(metavar="USER", help="Who you are, for what is kept by user.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="See: ksi model list",
            autocompletion=completion.models,
        ),
    ] = None,
    go_on: Annotated[
        bool, typer.Option("--continue", "-c", help="Go on with the last conversation.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            "-r",
            metavar="ID",
            help="Go on with this one.",
            autocompletion=completion.conversations,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", hidden=True)] = False,
) -> None:
    """Talk to a model; /help inside shows what you can do.

    Ctrl-C stops the model's turn, Ctrl-D leaves. Without a terminal it reads lines from stdin. For
    one question, and for --json: ksi ask.
    """
    if as_json:
        raise UsageError("a chat has no JSON; for one question: ksi ask --json TEXT")
    if go_on and resume:
        raise UsageError("--continue and --resume are two ways; use one of them")
    turns.check_conversation(resume)
    asyncio.run(_talk(agent=agent, user=user_id, model=model, last=go_on, conversation_id=resume))


async def _talk(
    *,
    agent: str | None,
    user: str | None,
    model: str | None,
    last: bool,
    conversation_id: str | None,
) -> None:
    async with connect_async() as client:
        screen, person = _surroundings()
        session = Session(client, screen, person, model=model, agent=agent, user=user)
        if last:
            conversation_id = await _last(session)
        await _greet(client, session)
        loop = asyncio.get_running_loop()
        asking = _Asking(session, leaves=isinstance(person, LinesInput))
        loop.add_signal_handler(signal.SIGINT, asking.interrupt)
        try:
            with person.quiet():
                await asking.run(conversation_id)
        except Left:
            pass
        finally:
            loop.remove_signal_handler(signal.SIGINT)
        if session.conversation_id and isinstance(screen, RichScreen):
            screen.say(f"go on later with: ksi chat --resume {session.conversation_id}")


def _surroundings() -> tuple[Screen, Input]:
    """Return what fits to where stdin and stdout lead."""
    is_plain = os.environ.get("TERM") in (None, "dumb")
    if sys.stdin.isatty() and sys.stdout.isatty() and not is_plain:
        return RichScreen(), TerminalInput(f"/{name}" for name in chat_commands.SHOWN)
    return PlainScreen(), LinesInput()


async def _last(session: Session) -> str:
    """Return the conversation that was used last.

    Raises:
        KsiError: There is none.
    """
    listed = await session.request(
        "conversation:list", limit=1, agent=session.agent, user=session.user
    )
    if not listed["conversations"]:
        raise KsiError("there is no conversation to continue; begin one with: ksi chat")
    return str(listed["conversations"][0]["conversation_id"])


async def _greet(client: AsyncClient, session: Session) -> None:
    """Say who answers, or fail at once where that model is not there."""
    found = await session.request("model:describe", model=session.model)
    session.screen.say(f"KSI · {found['id']} · /help shows what you can do, Ctrl-D leaves")
    if found.get("hint"):
        session.screen.say(found["hint"])


class _Asking:
    """Asks the person, and the model, in turn."""

    def __init__(self, session: Session, *, leaves: bool) -> None:
        self._session = session
        self._leaves = leaves
        self._task: asyncio.Task[None] | None = None

    async def run(self, conversation_id: str | None) -> None:
        """Go on until the person leaves.

        Raises:
            Left: The person has left.
        """
        self._task = asyncio.current_task()
        if conversation_id is not None:
            await chat_commands.resume(self._session, conversation_id)
        while True:
            try:
                line = await self._session.person.ask("> ")
            except EOFError:
                return
            except KeyboardInterrupt:
                self._session.screen.say("(Ctrl-D leaves)")
                continue
            if line.strip():
                await self._do(line)

    async def _do(self, line: str) -> None:
        try:
            if line.startswith("/") and not line.startswith("//"):
                await chat_commands.run(self._session, line)
            else:
                await self._session.say(line.removeprefix("/") if line[0] == "/" else line)
        except KsiError as error:
            self._session.screen.fail(output.reason(error))

    def interrupt(self) -> None:
        """Stop the turn; where none runs, leave if this is no terminal."""
        if not self._session.interrupt() and self._leaves and self._task is not None:
            output.note("interrupted")
            self._task.cancel()
