"""What happened: events recorded with their causes, outcomes and durations."""
