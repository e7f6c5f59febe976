from typing import final

from ringbuf._shared.shared_file import SharedFile

@final
class Participant:
    file: SharedFile
    epoch: int
    def __init__(self, file: SharedFile) -> None: ...
