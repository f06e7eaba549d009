"""The payloads of ``example:*``."""

from msgspec import Struct


class ExampleShout(Struct, frozen=True, kw_only=True):
    """Say a text in capitals."""

    text: str


class ExampleShouted(Struct, frozen=True, kw_only=True):
    """The text in capitals."""

    text: str


class ExampleSpell(Struct, frozen=True, kw_only=True):
    """Say a text letter by letter."""

    text: str
