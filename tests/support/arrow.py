"""Arrow arrays built by hand, so that they can be what no library would make."""

from __future__ import annotations

import ctypes
from typing import Any

RELEASE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

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


class HandMade:
    """Two columns as an Arrow array.

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
    ) -> None:
        #: How often it was released.
        self.released = 0
        self._parts = [
            None if part is None else ctypes.create_string_buffer(part, max(len(part), 1))
            for part in (validity, offsets, data)
        ]
        self._pointers = (ctypes.c_void_p * 3)(
            *(None if part is None else ctypes.addressof(part) for part in self._parts)
        )
        # A callback must outlive the structure, and pytest's frames do not.
        self._callbacks = RELEASE(self._release_schema), RELEASE(self._release_array)
        self.schema = CSchema(format=form, release=self._callbacks[0])
        self.array = CArray(
            length=length,
            n_buffers=3,
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
