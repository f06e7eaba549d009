"""The settings of the example."""

from msgspec import Struct


class ExampleSettings(Struct, frozen=True, kw_only=True):
    """The section ``[example]``.

    Attributes:
        mark: What ends a shout.
        max_letters: How long a text may be.
    """

    mark: str = "!"
    max_letters: int = 1000
