"""Reads files: what they say, how it is built, and what it hangs together with."""
