"""The daemon's events about itself: health, discovery, statistics, configuration, tokens."""
