"""Reading a directory without owning it."""
