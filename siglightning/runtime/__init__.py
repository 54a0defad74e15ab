"""What makes a run survive: its directory, its checkpoint files, its seeds and its exit codes."""
