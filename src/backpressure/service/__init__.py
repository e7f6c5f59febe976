"""What `forebay serve` runs: sources, a buffer, a sink and HTTP, from one file. Usable
without the command.
"""
