"""Arrow arrays built by hand, so that they can be what no library would make."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

RELEASE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

GET_SCHEMA = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
GET_NEXT = GET_SCHEMA
LAST_ERROR = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)

_new = ctypes.pythonapi.PyCapsule_New
_new.restype = ctypes.py_object
_new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class CSchema(ctypes.Structure):
    _fields_ = [
        ("format", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("metadata", ctypes.c_char_p),
        ("flags", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("children", ctypes.c_void_p),
        ("dictionary", ctypes.c_void_p),
        ("release", RELEASE),
        ("private_data", ctypes.c_void_p),
    ]


class CArray(ctypes.Structure):
    _fields_ = [
        ("length", ctypes.c_int64),
        ("null_count", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("n_buffers", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("buffers", ctypes.c_void_p),
        ("children", ctypes.c_void_p),
        ("dictionary", ctypes.c_void_p),
        ("release", RELEASE),
        ("private_data", ctypes.c_void_p),
    ]


class CStream(ctypes.Structure):
    _fields_ = [
        ("get_schema", GET_SCHEMA),
        ("get_next", GET_NEXT),
        ("get_last_error", LAST_ERROR),
        ("release", RELEASE),
        ("private_data", ctypes.c_void_p),
    ]


class HandMade:
    """Columns as an Arrow array: validity, offsets (or views), data, and `more`.

    Buffers: None is NULL. Its fields can be set before it is handed out.
    """

    def __init__(
        self,
        offsets: bytes | None,
        data: bytes | None,
        length: int,
        *,
        form: bytes = b"z",
        validity: bytes | None = None,
        more: Sequence[bytes | None] = (),
    ) -> None:
        #: How often it was released.
        self.released = 0
        self._parts = [
            None if part is None else ctypes.create_string_buffer(part, max(len(part), 1))
            for part in (validity, offsets, data, *more)
        ]
        self._pointers = (ctypes.c_void_p * len(self._parts))(
            *(None if part is None else ctypes.addressof(part) for part in self._parts)
        )
        # A callback must outlive the structure, and pytest's frames do not.
        self._callbacks = RELEASE(self._release_schema), RELEASE(self._release_array)
        self.schema = CSchema(format=form, release=self._callbacks[0])
        self.array = CArray(
            length=length,
            n_buffers=len(self._parts),
            buffers=ctypes.addressof(self._pointers),
            release=self._callbacks[1],
        )
        self.capsules = (
            _new(ctypes.addressof(self.schema), b"arrow_schema", None),
            _new(ctypes.addressof(self.array), b"arrow_array", None),
        )

    def _release_schema(self, address: int) -> None:
        CSchema.from_address(address).release = RELEASE()

    def _release_array(self, address: int) -> None:
        CArray.from_address(address).release = RELEASE()
        self.released += 1

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[Any, Any]:
        return self.capsules


class HandMadeStream:
    """Arrays as an Arrow stream, which then ends, or fails with this error.

    Its fields can be set before it is handed out.
    """

    def __init__(
        self,
        *arrays: HandMade,
        form: bytes = b"z",
        error: tuple[int, bytes | None] = (0, None),
        schema_error: int = 0,
    ) -> None:
        #: How often it, and its schema, was released.
        self.released = self.schema_released = 0
        self._arrays = list(arrays)
        # Of an array that was handed out, callbacks and memory are still used.
        self._given: list[HandMade] = []
        self._form, self._schema_error = form, schema_error
        self._code = error[0]
        self._text = None if error[1] is None else ctypes.create_string_buffer(error[1])
        self._release_of_schema = RELEASE(self._release_schema)
        self.stream = CStream(
            get_schema=GET_SCHEMA(self._get_schema),
            get_next=GET_NEXT(self._get_next),
            get_last_error=LAST_ERROR(self._get_last_error),
            release=RELEASE(self._release),
        )
        self._kept = self.stream.get_schema, self.stream.get_next
        self._kept_too = self.stream.get_last_error, self.stream.release
        self.capsule = _new(ctypes.addressof(self.stream), b"arrow_array_stream", None)

    def _get_schema(self, stream: int, out: int) -> int:
        if not self._schema_error:
            schema = CSchema.from_address(out)
            schema.format, schema.release = self._form, self._release_of_schema
        return self._schema_error

    def _get_next(self, stream: int, out: int) -> int:
        if self._arrays:
            self._given.append(self._arrays.pop(0))
            source = self._given[-1].array
            ctypes.memmove(out, ctypes.addressof(source), ctypes.sizeof(source))
            return 0
        return self._code  # 0: `out` is zeros, which is the end

    def _get_last_error(self, stream: int) -> int:
        return 0 if self._text is None else ctypes.addressof(self._text)

    def _release_schema(self, address: int) -> None:
        CSchema.from_address(address).release = RELEASE()
        self.schema_released += 1

    def _release(self, address: int) -> None:
        CStream.from_address(address).release = RELEASE()
        self.released += 1

    def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
        return self.capsule
