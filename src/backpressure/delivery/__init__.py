"""From a buffer to a sink."""
