"""What processes share: a file, its participants, their operations, and their waits."""
