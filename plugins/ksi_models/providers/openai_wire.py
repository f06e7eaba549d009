"""Asks servers that speak OpenAI's protocol, whoever's they are."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
from msgspec import Struct

from ksi_models.events import Usage
from ksi_models.keys import Keys, variables_of
from ksi_models.provider import Delta, KnownModel, ProviderError, Question
from ksi_models.providers.answer import Piece
from ksi_models.providers.errors import brief, message_of, refusal
from ksi_models.providers.openai_chunks import ChunkReader
from ksi_models.providers.openai_messages import Quirks, request_body
from ksi_models.providers.sse import EventReader, TooLarge

CONNECT_TIMEOUT_S: Final = 10.0
LIST_TIMEOUT_S: Final = 10.0
MAX_ERROR_BYTES: Final = 64 * 1024
MAX_LIST_BYTES: Final = 16 * 1024 * 1024
MAX_EMBED_BYTES: Final = 256 * 1024 * 1024
MAX_QUIRKS: Final = 1000
WRAPPING: Final = 64  # so many bytes of the wire may stand around one of an answer
GATHER_S: Final = 0.016  # for so long what comes is gathered, where it comes faster than that
QUICK_READS: Final = 3  # once so many in a row came faster
END_TIMEOUT_S: Final = 0.02  # for the end of an answer that is complete, to keep its connection

Answer = TypeVar("Answer")


class Place(Struct, frozen=True, kw_only=True):
    """Where a server is, and what is to be known of it.

    Attributes:
        base_url: Up to and with ``/v1``.
        key_of: Whose key is sent; nobody's where it is empty.
        needs_key: Whether nothing can be asked without a key.
        context_tokens: What its models can read, where that is known.
        max_output_tokens: What its models can write, where that is known.
    """

    base_url: str
    headers: dict[str, str] = {}
    key_of: str = ""
    needs_key: bool = False
    max_answer_bytes: int = 8 * 1024 * 1024
    context_tokens: int | None = None
    max_output_tokens: int | None = None


class ListedModel(Struct):
    """A model as servers list it; each names what it can read differently, or not at all."""

    id: str
    context_length: int | None = None
    context_window: int | None = None
    max_model_len: int | None = None
    max_context_length: int | None = None


class Listed(Struct):
    """The answer to ``GET /models``."""

    data: list[ListedModel] | None = None


class Vector(Struct):
    """A text's vector."""

    embedding: list[float]
    index: int = 0


class Vectors(Struct):
    """The answer to ``POST /embeddings``."""

    data: list[Vector]
    usage: dict[str, Any] | None = None


class OpenAIWire:
    """A server that speaks OpenAI's chat completions.

    Args:
        name: What stands before the colon of its models' ids.
        place: Where it is.
        keys: Has its key.
    """

    def __init__(self, name: str, place: Place, keys: Keys) -> None:
        self.name = name
        self.place = place
        self._keys = keys
        self._base = place.base_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self._quirks: dict[str, Quirks] = {}

    # -- what a provider does -------------------------------------------------------------------

    async def stream(self, question: Question) -> AsyncGenerator[Delta, None]:
        """Ask, and yield what comes."""
        quirks = self._quirks_of(question.model)
        while True:
            body = msgspec.json.encode(request_body(question, quirks))
            async with self._request("POST", "/chat/completions", body) as response:
                if response.status != 200:
                    told = await self._limited(response, MAX_ERROR_BYTES, cut=True)
                    if response.status in (400, 422) and quirks.learn(message_of(told)):
                        continue
                    raise self._refusal(response, told)
                async with aclosing(self._answer(response)) as answer:
                    async for delta in answer:
                        yield delta
                return

    async def embed(self, model: str, texts: tuple[str, ...]) -> tuple[list[list[float]], Usage]:
        """Turn texts into vectors."""
        body = msgspec.json.encode({"model": model, "input": texts, "encoding_format": "float"})
        async with self._request("POST", "/embeddings", body) as response:
            told = await self._body(response, MAX_EMBED_BYTES)
        vectors = self._decode(told, Vectors)
        found = [each.embedding for each in sorted(vectors.data, key=lambda each: each.index)]
        if len(found) != len(texts):
            raise ProviderError(
                "malformed", f"{self.name} gave {len(found)} vectors for {len(texts)} texts"
            )
        tokens = (vectors.usage or {}).get("prompt_tokens")
        return found, Usage(input_tokens=tokens if isinstance(tokens, int) else 0)

    async def models(self) -> list[KnownModel]:
        """Ask which models it has."""
        try:
            async with asyncio.timeout(LIST_TIMEOUT_S):
                async with self._request("GET", "/models") as response:
                    told = await self._body(response, MAX_LIST_BYTES)
        except TimeoutError as error:
            raise ProviderError(
                "network", f"{self.name} did not list its models within {LIST_TIMEOUT_S:g} s"
            ) from error
        return [self._known(model) for model in self._decode(told, Listed).data or ()]

    async def why_not(self) -> str | None:
        """Say that a key is missing, where one is needed."""
        if self.place.needs_key and not await self._keys.find(self.place.key_of):
            return self._no_key()
        return None

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    # -- an answer ------------------------------------------------------------------------------

    async def _answer(self, response: aiohttp.ClientResponse) -> AsyncGenerator[Delta, None]:
        limit = self.place.max_answer_bytes
        chunks = ChunkReader(self.name, limit, self._keys.redacted)
        if response.content_type == "application/json":  # it does not stream
            chunks.read(await self._limited(response, 2 * limit))
            for piece in chunks.answer.take():
                yield piece
        elif response.content_type == "text/html":
            raise ProviderError(
                "invalid", f"{self.name} answered with a page; is its base_url right, up to /v1?"
            )
        else:
            async with aclosing(self._pieces(response, chunks)) as read:
                async for pieces in read:
                    for piece in pieces:
                        yield piece
        yield chunks.end()

    async def _pieces(
        self, response: aiohttp.ClientResponse, chunks: ChunkReader
    ) -> AsyncGenerator[list[Piece], None]:
        """Yield what comes at once."""
        try:
            async with aclosing(self._payloads(response, chunks)) as read:
                async for payloads in read:
                    for payload in payloads:
                        chunks.read(payload)
                    if pieces := chunks.answer.take():
                        yield pieces
                    if chunks.is_done:
                        await self._finish(response)
                        return
        except TooLarge as error:
            raise ProviderError(
                "malformed", f"{self.name} wrote more than an answer may hold"
            ) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            if not chunks.is_complete:
                raise ProviderError(
                    "cut_off", f"{self.name} broke its answer off: {_why(error)}"
                ) from error

    async def _payloads(
        self, response: aiohttp.ClientResponse, chunks: ChunkReader
    ) -> AsyncGenerator[list[bytes], None]:
        """Yield the events that come at once; also bytes that carry no text are bounded."""
        events = EventReader()
        taken, most = 0, WRAPPING * chunks.answer.max_characters
        clock, quick = asyncio.get_running_loop().time, 0
        asked_at = clock()
        async for data in response.content.iter_any():
            taken += len(data)
            if taken > most:
                raise TooLarge
            quick = quick + 1 if clock() - asked_at < GATHER_S else 0
            yield events.feed(data)
            if quick > QUICK_READS and not chunks.is_complete:
                await _gather(response)
            asked_at = clock()
        yield events.close()

    async def _finish(self, response: aiohttp.ClientResponse) -> None:
        """Read to the end, which comes with the last chunk, so that the connection can be kept."""
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, ConnectionError):
            async with asyncio.timeout(END_TIMEOUT_S):
                while await response.content.readany():
                    pass

    # -- a request ------------------------------------------------------------------------------

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = await self._headers()
        try:
            response = await self._open().request(
                method, self._base + path, data=body, headers=headers, allow_redirects=False
            )
        except (aiohttp.InvalidURL, ValueError) as error:
            raise ProviderError(
                "invalid", f"{self.name} can't be asked: its base_url or a header is not valid"
            ) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._away(error) from error
        async with response:
            if 300 <= response.status < 400:
                raise ProviderError(
                    "invalid", f"{self.name} points elsewhere; set its base_url to where it is"
                )
            yield response

    async def _headers(self) -> dict[str, str]:
        headers = {
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": "ksi",
        }
        key = await self._keys.find(self.place.key_of) if self.place.key_of else None
        if key:
            headers["Authorization"] = f"Bearer {key}"
        elif self.place.needs_key:
            raise ProviderError("login", self._no_key())
        return {**headers, **self.place.headers}

    def _no_key(self) -> str:
        variable = variables_of(self.place.key_of)[0]
        return f"there is no key for {self.name}: set {variable} and restart the daemon"

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                trust_env=not is_local(self._base),
            )
        return self._session

    def _away(self, error: Exception) -> ProviderError:
        if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLError):
            return ProviderError("invalid", f"{self.name}'s certificate is not valid")
        if isinstance(error, TimeoutError):
            told = f"no connection within {CONNECT_TIMEOUT_S:g} s"
        else:
            told = _why(error)
        return ProviderError(
            "network", f"{self.name} can't be reached at {self._shown()}: {told}; does it run?"
        )

    def _shown(self) -> str:
        """Return where it is, without a password that may stand there."""
        try:
            parts = urlsplit(self._base)
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            return "its base_url"
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"

    async def _body(self, response: aiohttp.ClientResponse, most: int) -> bytes:
        told = await self._limited(response, most, cut=response.status != 200)
        if response.status != 200:
            raise self._refusal(response, told)
        return told

    async def _limited(
        self, response: aiohttp.ClientResponse, most: int, *, cut: bool = False
    ) -> bytes:
        """Read a body within a bound; what is past it is dropped, or an error."""
        parts: list[bytes] = []
        size = 0
        try:
            async for data in response.content.iter_any():
                parts.append(data)
                size += len(data)
                if size > most:
                    break
        except (aiohttp.ClientError, ConnectionError) as error:
            if not cut:
                raise ProviderError(
                    "cut_off", f"{self.name} broke its answer off: {_why(error)}"
                ) from error
        if size > most and not cut:
            raise ProviderError("malformed", f"{self.name} wrote more than an answer may hold")
        return b"".join(parts)[:most]

    def _decode(self, told: bytes, shape: type[Answer]) -> Answer:
        try:
            return msgspec.json.decode(told, type=shape, strict=False)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ProviderError(
                "malformed", f"{self.name} wrote what can't be read: {error}"
            ) from error

    def _refusal(self, response: aiohttp.ClientResponse, told: bytes) -> ProviderError:
        return refusal(self.name, response.status, told, response.headers, self._keys.redacted)

    def _known(self, model: ListedModel) -> KnownModel:
        reads = (
            model.context_length
            or model.context_window
            or model.max_model_len
            or model.max_context_length
            or self.place.context_tokens
        )
        return KnownModel(
            name=model.id, context_tokens=reads, max_output_tokens=self.place.max_output_tokens
        )

    def _quirks_of(self, model: str) -> Quirks:
        if model not in self._quirks:
            if len(self._quirks) >= MAX_QUIRKS:
                self._quirks.clear()
            new = self._base.startswith("https://api.openai.com/")
            self._quirks[model] = Quirks(completion_tokens=new)
        return self._quirks[model]


async def _gather(response: aiohttp.ClientResponse) -> None:
    """Leave what comes with the kernel for a moment: each read costs as much as what it brings."""
    connection = response.connection
    if connection is None or connection.protocol is None:  # all of it is here
        return
    connection.protocol.pause_reading()
    try:
        await asyncio.sleep(GATHER_S)
    finally:
        connection.protocol.resume_reading()


def _why(error: BaseException) -> str:
    return brief(str(error)) or type(error).__name__


def is_local(url: str) -> bool:
    """Tell whether a URL is of this machine."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return host in ("localhost", "::1") or host.startswith("127.")
