"""A process that is killed by the kernel when it asks for a socket that could reach a network."""

from __future__ import annotations

import ctypes
import platform
import struct

_SOCKET_CALL = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
IS_HERE = platform.system() == "Linux" and platform.machine() in _SOCKET_CALL
_ALLOW, _KILL = 0x7FFF0000, 0x80000000  # SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2  # of prctl
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # of classic BPF


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def forbid_network() -> None:
    """For `preexec_fn`: from here on this process and its children have no network.

    Native code is bound as Python is. Source: seccomp(2).
    """
    arch, call = _SOCKET_CALL[platform.machine()]
    # struct sock_filter: code, jump if true, jump if false, value; offsets in struct seccomp_data
    lines = [
        (_LOAD, 0, 0, 4),  # the architecture
        (_EQUAL, 0, 7, arch),
        (_LOAD, 0, 0, 0),  # the number of the call
        (_EQUAL, 0, 5, call),
        (_LOAD, 0, 0, 16),  # its first argument, the family
        (_EQUAL, 1, 0, 2),  # AF_INET
        (_EQUAL, 0, 2, 10),  # AF_INET6
        (_LOAD, 0, 0, 24),  # its second argument, the type with its flags
        (_EQUAL, 0, 1, 2),  # a bare SOCK_DGRAM: libuuid asks it for the network card's address
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _KILL),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = _Program(len(lines), ctypes.cast(code, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _SECCOMP, _FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "prctl")
