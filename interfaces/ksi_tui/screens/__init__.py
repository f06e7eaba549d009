"""What the monitor shows, a module for each screen."""
