"""What `forebay serve` runs: sources, a buffer, a sink and HTTP, from one file.

It can be used without the command.
"""
