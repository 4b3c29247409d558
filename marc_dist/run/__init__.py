"""What lies in a run folder, and what it means: names, exit codes, heartbeats, attempts, progress. No torch."""
