"""The machinery of `BufferManager`, one job a file."""
