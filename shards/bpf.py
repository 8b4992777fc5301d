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
from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

_SYSCALL = {"x86_64": 321, "aarch64": 280}

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, PROG_LOAD, PROG_TEST_RUN, LINK_CREATE, LINK_UPDATE = 0, 1, 2, 5, 10, 28, 29
PERCPU_ARRAY, XSKMAP = 6, 17  # map types
CLASSIFIER, XDP_PROGRAM = 3, 6  # program types
XDP_ATTACHMENT = 37
GENERIC, NATIVE = 2, 4  # XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE
XDP_DROP, XDP_PASS, XDP_REDIRECT = 1, 2, 4

# Helpers, as numbered in the kernel's `bpf_helper_defs.h`.
MAP_LOOKUP_ELEM, CLONE_REDIRECT, REDIRECT_MAP = 1, 13, 51

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
POINTER = I8.as_pointer()

_libc = ctypes.CDLL(None, use_errno=True)


def call(command: int, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    """The system call, which writes answers into a buffer; raises OSError."""
    result: int = _libc.syscall(_SYSCALL[platform.machine()], command, attributes, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def create_map(kind: int, value_bytes: int, entries: int, name: str) -> int:
    """Descriptor of a new map with 32-bit keys."""
    return call(MAP_CREATE, struct.pack("<7I16s", kind, 4, value_bytes, entries, 0, 0, 0, name.encode()[:15]))


def update_map(fd: int, key: int, value: bytes) -> None:
    """Store `value` (for a per-CPU map: one value for each possible CPU)."""
    key_buffer, value_buffer = ctypes.c_uint32(key), ctypes.create_string_buffer(value, len(value))
    call(MAP_UPDATE, struct.pack("<QQQQ", fd, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), 0))


def read_map(fd: int, key: int, size: int) -> bytes:
    """Value of `size` bytes (for a per-CPU map: 8-byte aligned value times possible CPUs)."""
    key_buffer, value_buffer = ctypes.c_uint32(key), ctypes.create_string_buffer(size)
    call(MAP_LOOKUP, struct.pack("<QQQQ", fd, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), 0))
    return value_buffer.raw


def possible_cpus() -> int:
    """How many values a per-CPU map holds for each key."""
    with open("/sys/devices/system/cpu/possible") as told:
        return 1 + int(told.read().strip().replace("-", ",").split(",")[-1])


class Source:
    """A program being written: one function of one context, with what BPF has beside LLVM's instructions."""

    def __init__(self) -> None:
        self.module = ir.Module()
        self.module.triple = "bpfel"
        self.function = ir.Function(self.module, ir.FunctionType(I32, [POINTER]), "program")
        self.function.section = "code"
        self.build = ir.IRBuilder(self.function.append_basic_block("entry"))

    def context(self, at: int) -> Any:
        """Pointer to the 32-bit word at this offset of the context."""
        return self.build.bitcast(self.build.gep(self.function.args[0], [I64(at)]), I32.as_pointer())

    def call(self, helper: int, kinds: Sequence[ir.Type], arguments: Sequence[Any], result: ir.Type = I64) -> Any:
        """Call a helper of the kernel by its number."""
        function = self.build.inttoptr(I64(helper), ir.FunctionType(result, kinds).as_pointer())
        return self.build.call(function, arguments)

    def map(self, fd: int) -> Any:
        """The map that the loader puts in the place of this descriptor (BPF_PSEUDO_MAP_FD)."""
        pseudo = self.module.globals.get("llvm.bpf.pseudo")
        pseudo = pseudo or ir.Function(self.module, ir.FunctionType(I64, [I64, I64]), "llvm.bpf.pseudo")
        return self.build.inttoptr(self.build.call(pseudo, [I64(1), I64(fd)]), POINTER)

    def block(self) -> Any:
        """A new block of instructions."""
        return self.function.append_basic_block()

    def compile(self) -> bytes:
        """The instructions; they may need no relocation."""
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        parsed = llvm.parse_assembly(str(self.module))
        parsed.verify()
        machine = llvm.Target.from_triple("bpfel").create_target_machine(cpu="v2", opt=2)
        sections = llvm.ObjectFileRef.from_data(machine.emit_object(parsed)).sections()
        return next(bytes(part.data()) for part in sections if part.name() == b"code")


def load_program(source: Source, name: str, kind: int = XDP_PROGRAM) -> int:
    """Descriptor of the loaded program.

    Raises OSError whose text carries the end of the verifier's log.
    """
    instructions = source.compile()
    log, code, terms = (ctypes.create_string_buffer(size) for size in (1 << 18, instructions, b"Apache-2.0"))
    attributes = struct.pack(
        "<IIQQIIQII16sII",
        kind, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(terms),
        1, len(log), ctypes.addressof(log), 0, 0, name.encode()[:15], 0, XDP_ATTACHMENT if kind == XDP_PROGRAM else 0,
    )  # fmt: skip
    try:
        return call(PROG_LOAD, attributes)
    except OSError as refused:
        told = log.value.decode(errors="replace").strip().splitlines()[-8:]
        raise OSError(refused.errno, "; ".join([refused.strerror or "", *told])) from None


def attach(program: int, ifindex: int, mode: int) -> int:
    """Descriptor of the link that attaches the program to a device; closing its last copy detaches."""
    return call(LINK_CREATE, struct.pack("<IIII", program, ifindex, XDP_ATTACHMENT, mode))


def exchange(link: int, program: int) -> None:
    """Put another program in the place of the attached one: a frame meets either, and none meets nothing."""
    call(LINK_UPDATE, struct.pack("<IIII", link, program, 0, 0))


def run(program: int, frame: bytes, context: bytes = b"") -> int:
    """What the program returns for this frame (and `struct xdp_md`), run once, here and now; it need not be attached."""
    data, about = ctypes.create_string_buffer(frame, len(frame)), ctypes.create_string_buffer(context, len(context) or 1)
    attributes = struct.pack(
        "<IIIIQQIIIIQQQ8x",
        program, 0, len(frame), 0, ctypes.addressof(data), 0, 1, 0,
        len(context), 0, ctypes.addressof(about) if context else 0, 0, 0,
    )  # fmt: skip
    answer = ctypes.create_string_buffer(attributes, len(attributes))
    call(PROG_TEST_RUN, answer)
    return int.from_bytes(answer.raw[4:8], "little")


def why_not_attached(refused: OSError) -> str:
    """A sentence for people about a refusal of `attach`."""
    return {
        errno.EBUSY: "another XDP program is attached to it; remove it (`ip link set DEV xdp off`)",
        errno.ERANGE: "its peer's MTU is too large for XDP; lower it to 3498 or less",
        errno.ENOSPC: "its peer has more transmit queues than it has receive queues; give it as many (`ethtool -L`)",
        errno.EOPNOTSUPP: "its driver has no native XDP; choose xdp-mode generic",
        errno.EPERM: "loading XDP programs needs root (CAP_NET_ADMIN and CAP_BPF)",
    }.get(refused.errno or 0, str(refused))
