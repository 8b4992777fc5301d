"""What Krononat needs of bpf(2), and llvmlite's BPF target as the compiler: no clang, no libbpf, no BTF.

The numbers are those of `linux/bpf.h`. Every descriptor made here is closed by whoever asked for it; programs and maps live
as long as a descriptor, or a link that uses them, does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

import llvmlite.binding as llvm
from llvmlite import ir

_SYSCALL = {"x86_64": 321, "aarch64": 280}

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, PROG_LOAD, PROG_TEST_RUN, LINK_CREATE = 0, 1, 2, 5, 10, 28
PERCPU_ARRAY, XSKMAP = 6, 17  # map types
XDP_PROGRAM, XDP_ATTACHMENT = 6, 37
GENERIC, NATIVE = 2, 4  # XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE
LIVE_FRAMES = 2  # BPF_F_TEST_XDP_LIVE_FRAMES

# Of helpers in the kernel's `bpf_helper_defs.h`.
MAP_LOOKUP_ELEM, REDIRECT_MAP = 1, 51

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    """The system call; raises OSError."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = _libc.syscall(_SYSCALL[platform.machine()], command, buffer, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def create_map(kind: int, value_bytes: int, entries: int, name: str) -> int:
    """Descriptor of a new map with 32-bit keys."""
    return _bpf(MAP_CREATE, struct.pack("<7I16s", kind, 4, value_bytes, entries, 0, 0, 0, name.encode()[:15]))


def update_map(fd: int, key: int, value: bytes) -> None:
    """Store `value` (for a per-CPU map: one value for each possible CPU)."""
    key_buffer, value_buffer = ctypes.c_uint32(key), ctypes.create_string_buffer(value, len(value))
    _bpf(MAP_UPDATE, struct.pack("<QQQQ", fd, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), 0))


def read_map(fd: int, key: int, size: int) -> bytes:
    """Value of `size` bytes (for a per-CPU map: 8-byte aligned value times possible CPUs)."""
    key_buffer, value_buffer = ctypes.c_uint32(key), ctypes.create_string_buffer(size)
    _bpf(MAP_LOOKUP, struct.pack("<QQQQ", fd, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), 0))
    return value_buffer.raw


def possible_cpus() -> int:
    """How many values a per-CPU map holds for each key."""
    with open("/sys/devices/system/cpu/possible") as told:
        return 1 + int(told.read().strip().replace("-", ",").split(",")[-1])


def compile_program(module: ir.Module, section: str) -> bytes:
    """Instructions of the one function that stands in `section` of the module; it may need no relocation."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    machine = llvm.Target.from_triple("bpfel").create_target_machine(cpu="v2", opt=2)
    for part in llvm.ObjectFileRef.from_data(machine.emit_object(parsed)).sections():
        if part.name() == section.encode():
            return bytes(part.data())
    raise ValueError(f"the compiler left no section {section!r}")


def load_program(instructions: bytes, name: str) -> int:
    """Descriptor of the XDP program.

    Raises OSError whose text carries the end of the verifier's log.
    """
    log, code, terms = (ctypes.create_string_buffer(size) for size in (1 << 18, instructions, b"Apache-2.0"))
    attributes = struct.pack(
        "<IIQQIIQII16sII",
        XDP_PROGRAM, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(terms),
        1, len(log), ctypes.addressof(log), 0, 0, name.encode()[:15], 0, XDP_ATTACHMENT,
    )  # fmt: skip
    try:
        return _bpf(PROG_LOAD, attributes)
    except OSError as refused:
        told = log.value.decode(errors="replace").strip().splitlines()[-8:]
        raise OSError(refused.errno, "; ".join([refused.strerror or "", *told])) from None


def attach(program: int, ifindex: int, mode: int) -> int:
    """Descriptor of the link that attaches the program to a device; closing its last copy detaches."""
    return _bpf(LINK_CREATE, struct.pack("<IIII", program, ifindex, XDP_ATTACHMENT, mode))


def inject(program: int, frame: bytes, ifindex: int, queue: int) -> None:
    """Run the program on one frame as if it had come in by that queue, and act on what it decides (kernel 5.18).

    The frame is really redirected, dropped or passed to the kernel's stack; the program need not be attached.
    """
    data, context = ctypes.create_string_buffer(frame, len(frame)), struct.pack("<6I", 0, len(frame), 0, ifindex, queue, 0)
    context_buffer = ctypes.create_string_buffer(context, len(context))
    attributes = struct.pack(
        "<IIIIQQIIIIQQIII",
        program, 0, len(frame), 0, ctypes.addressof(data), 0, 1, 0,
        len(context), 0, ctypes.addressof(context_buffer), 0, LIVE_FRAMES, 0, 1,
    )  # fmt: skip
    _bpf(PROG_TEST_RUN, attributes + bytes(-len(attributes) % 8))


def why_not_attached(refused: OSError) -> str:
    """A sentence for people about a refusal of `attach`."""
    return {
        errno.EBUSY: "another XDP program is attached to it; remove it (`ip link set DEV xdp off`)",
        errno.ERANGE: "its peer's MTU is too large for XDP; lower it to 3498 or less",
        errno.ENOSPC: "its peer has more transmit queues than it has receive queues; give it as many (`ethtool -L`)",
        errno.EOPNOTSUPP: "its driver has no native XDP; choose xdp-mode generic",
        errno.EPERM: "loading XDP programs needs root (CAP_NET_ADMIN and CAP_BPF)",
    }.get(refused.errno or 0, str(refused))
