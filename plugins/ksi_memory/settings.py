"""The settings of the memory."""

from msgspec import Struct

from ksi_daemon.settings import Positive


class MemorySettings(Struct, frozen=True, kw_only=True):
    """The section ``[memory]``.

    Attributes:
        max_attributes_bytes: Size of an item's attributes, as JSON.
    """

    max_attributes_bytes: Positive = 64 * 1024
