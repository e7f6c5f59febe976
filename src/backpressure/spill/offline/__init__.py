"""Reading a directory without owning it.

directory_view.py  a buffer's directory and who owns it
lane_reader.py     the events in a lane's files
inspect.py         the state of every block, export and repair
"""
