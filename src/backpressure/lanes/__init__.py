"""One line of sequence numbers over two tiers: a ring, and the disk below it."""
