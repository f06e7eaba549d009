"""What servers say of their tools, and what these return: made safe, kept, and held to it."""
