from _typeshed import ReadableBuffer

PARTICIPANTS: int

def layout(granules: int) -> tuple[int, int, int, int]: ...
def read_positions(
    memory: ReadableBuffer, granules: int
) -> tuple[int, int, int, int, int] | None: ...
