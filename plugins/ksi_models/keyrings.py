"""Asks the keyring of this machine, which may ask a person first."""

import asyncio
import contextlib
import logging
import threading
from typing import Final

log = logging.getLogger(__name__)

SERVICE: Final = "ksi"


async def ask_keyring(name: str, timeout_s: float) -> str | None:
    """Ask in a thread of its own, which is left behind where a person is waited for.

    Returns:
        What is kept under the service ``ksi`` and this name; nothing where there is no keyring.

    Raises:
        TimeoutError: It did not answer in time.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str | None] = loop.create_future()

    def answered(found: str | None) -> None:
        if not answer.done():
            answer.set_result(found)

    def ask() -> None:
        found = None
        try:
            import keyring  # noqa: PLC0415  late: it takes a while, and often nobody needs it

            found = keyring.get_password(SERVICE, name)
        except Exception as error:  # noqa: BLE001  each of its many back ends raises what it likes
            log.debug("the keyring can't be asked", extra={"why": type(error).__name__})
        with contextlib.suppress(RuntimeError):  # the loop is closed by now
            loop.call_soon_threadsafe(answered, found)

    threading.Thread(target=ask, name="keyring", daemon=True).start()
    async with asyncio.timeout(timeout_s):
        return await answer
