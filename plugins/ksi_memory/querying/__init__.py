"""What is asked: the REM dialect, its ways of finding, and the answers."""
