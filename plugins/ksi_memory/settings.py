"""The settings of the memory."""

from msgspec import Struct

from ksi_daemon.settings import Positive


class MemorySettings(Struct, frozen=True, kw_only=True):
    """The section ``[memory]``.

    Attributes:
        max_attributes_bytes: Size of an item's attributes, as JSON.
        max_item_characters: Length of an item's title and body; what is longer is loaded in chunks.
        max_item_links: How many edges, sources or persons an item may name, of each.
        max_why_steps: How far, and how wide, the chain of an item's sources is followed.
    """

    max_attributes_bytes: Positive = 64 * 1024
    max_item_characters: Positive = 200_000
    max_item_links: Positive = 1000
    max_why_steps: Positive = 200
