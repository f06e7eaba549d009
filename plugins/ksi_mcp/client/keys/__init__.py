"""The secrets that servers are handed: where they are, what looks like one, and logins."""
