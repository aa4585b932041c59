"""Object files as LLVM writes them, linked at an address: as much of ELF as kernels need that call each other and the C library.

LLVM's own linker is not used, so that a process whose code is all in the cache never loads LLVM, which takes 70 MB of memory and
a tenth of a second. Anything that is not understood (a writable section, another relocation) is refused.

Source: System V ABI, AMD64 supplement, table 4.9; ELF for the Arm 64-bit Architecture, section 5.7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kernels.native.errors import CompileError
from kernels.record import record
from kernels.spec import Array

PAGE_BYTES = 4096
STUB_BYTES = 16  # a jump to any address: the C library may lie beyond the reach of a call

_MACHINES = {62: "x86_64", 183: "aarch64"}
_HEADER = np.dtype([("magic", "S4"), ("class", "u1"), ("data", "u1"), ("_", "V10"), ("type", "<u2"), ("machine", "<u2"),
                    ("__", "V20"), ("sections_at", "<u8"), ("___", "V12"), ("section_count", "<u2"), ("____", "V2")])  # fmt: skip
_SECTION = np.dtype([("name", "<u4"), ("type", "<u4"), ("flags", "<u8"), ("address", "<u8"), ("offset", "<u8"), ("size", "<u8"),
                     ("link", "<u4"), ("info", "<u4"), ("align", "<u8"), ("entry", "<u8")])  # fmt: skip
_SYMBOL = np.dtype([("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")])
_RELOCATION = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])

_PROGBITS, _SYMTAB, _RELA = 1, 2, 4
_UNWIND = 0x70000001  # tables for unwinding the stack: kernels throw nothing
_WRITE, _ALLOC = 1, 2
_UNDEFINED = 0
_STUBS = {
    "x86_64": b"\xff\x25\x00\x00\x00\x00",
    "aarch64": b"\x50\x00\x00\x58\x00\x02\x1f\xd6",
}  # jump to the address that follows


@record
class Object:
    """One object file, read. sections: number in the file -> (place in the object's memory, bytes). exports: name -> place.

    places: of each symbol, by number; -1 for one that is defined elsewhere, whose name is in `wants`.
    relocations: of each section that has any, with the section's place.
    """

    arch: str
    nbytes: int
    sections: Mapping[int, tuple[int, bytes]]
    exports: Mapping[str, int]
    places: Array
    wants: Mapping[int, str]
    relocations: Sequence[tuple[int, Array]]


def read_object(data: bytes) -> Object:
    """Read an object file. Raises CompileError for data that is not a complete object of a known machine."""
    try:
        return _read(data)
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise CompileError(f"object: {len(data)} bytes are not a complete ELF object, {error}") from error


def _read(data: bytes) -> Object:
    header = np.frombuffer(data, _HEADER, 1)[0]
    arch = _MACHINES.get(int(header["machine"]))
    if (header["magic"], header["class"], header["data"], header["type"]) != (b"\x7fELF", 2, 1, 1) or arch is None:
        raise ValueError("it is not relocatable, 64-bit, little-endian code of a known machine")
    table = np.frombuffer(data, _SECTION, int(header["section_count"]), int(header["sections_at"]))
    sections: dict[int, tuple[int, bytes]] = {}
    nbytes = 0
    for number, section in enumerate(table):
        if section["flags"] & _ALLOC and section["size"] and section["type"] != _UNWIND:
            if section["type"] != _PROGBITS or section["flags"] & _WRITE:
                raise ValueError(
                    f"section {number} is of type {section['type']} with flags {section['flags']}, need constant bytes"
                )
            start = -(-nbytes // max(int(section["align"]), 1)) * max(int(section["align"]), 1)
            sections[number] = (start, _part(data, section))
            nbytes = start + int(section["size"])
    (symbols_at,) = np.flatnonzero(table["type"] == _SYMTAB)
    symbols = np.frombuffer(_part(data, table[symbols_at]), _SYMBOL)
    names = _part(data, table[table[symbols_at]["link"]])
    places, wants, exports = np.full(len(symbols), -1, np.int64), {}, {}
    for number, symbol in enumerate(symbols):
        start = int(symbol["name"])
        name = names[start : names.index(b"\0", start)].decode()
        home = int(symbol["section"])
        if home in sections:
            places[number] = sections[home][0] + int(symbol["value"])
            if symbol["info"] >> 4:  # not local
                exports[name] = int(places[number])
        elif home == _UNDEFINED and number:
            wants[number] = name
    relocations = []
    for section in table[table["type"] == _RELA]:
        if int(section["info"]) in sections:
            found = np.frombuffer(_part(data, section), _RELOCATION)
            start, code = sections[int(section["info"])]
            if len(found) and (found["symbol"].max() >= len(symbols) or found["offset"].max() + 8 > len(code) + 4):
                raise ValueError(f"a relocation of section {section['info']} lies outside of it")
            relocations.append((start, found))
    return Object(arch, nbytes, sections, exports, places, wants, relocations)


def _part(data: bytes, section: Array) -> bytes:
    start, size = int(section["offset"]), int(section["size"])
    if start + size > len(data):
        raise ValueError(f"a section ends at byte {start + size}")
    return data[start : start + size]


class Image:
    """Objects laid out one behind the other: how much memory they need, and their bytes once it is known where that lies.

    outside: gives the address of a name that no object exports. Raises CompileError for a name that is exported twice or nowhere.
    """

    def __init__(self, objects: Sequence[Object], outside: Callable[[str], int | None]) -> None:
        self.objects = objects
        self.starts: list[int] = []
        self.exports: dict[str, int] = {}
        at = 0
        for item in objects:
            at = -(-at // 64) * 64
            self.starts.append(at)
            for name, place in item.exports.items():
                if name in self.exports:
                    raise CompileError(f"library: {name!r} is defined twice")
                self.exports[name] = at + place
            at += item.nbytes
        self.stubs: dict[str, int] = {}
        self._targets: dict[str, int] = {}
        at = -(-at // 16) * 16
        for name in sorted({name for item in objects for name in item.wants.values()} - set(self.exports)):
            target = outside(name)
            if target is None:
                raise CompileError(f"library: {name!r} is defined nowhere")
            self.stubs[name], self._targets[name] = at, target
            at += STUB_BYTES
        self.nbytes = max(-(-at // PAGE_BYTES) * PAGE_BYTES, PAGE_BYTES)

    def write(self, memory: Array, address: int) -> None:
        """Fill memory (bytes) that lies at that address. Raises CompileError for a relocation that is unknown or out of reach."""
        for name, at in self.stubs.items():
            code = _STUBS[self.objects[0].arch]
            stub = code + self._targets[name].to_bytes(8, "little")
            memory[at : at + len(stub)] = np.frombuffer(stub, np.uint8)
        for item, start in zip(self.objects, self.starts, strict=True):
            for place, code in item.sections.values():
                memory[start + place : start + place + len(code)] = np.frombuffer(code, np.uint8)
            symbols = item.places + (start + address)
            for number, name in item.wants.items():
                symbols[number] = address + (self.exports[name] if name in self.exports else self.stubs[name])
            for place, found in item.relocations:
                spots = found["offset"].astype(np.int64) + (start + place)
                targets = symbols[found["symbol"]] + found["addend"]
                for kind in set(found["type"].tolist()):
                    chosen = found["type"] == kind
                    _apply(item.arch, kind, memory, spots[chosen], address + spots[chosen], targets[chosen])


def _apply(arch: str, kind: int, memory: Array, at: Array, where: Array, target: Array) -> None:
    """Relocations of one kind. at: in memory. where: the addresses of that. target: symbol plus addend."""
    if (arch, kind) in {("x86_64", 2), ("x86_64", 4), ("aarch64", 261)}:  # PC32, PLT32, PREL32
        _put(memory, at, _signed(target - where, 32))
        return
    if (arch, kind) in {("x86_64", 1), ("aarch64", 257)}:  # an address
        memory[at[:, None] + np.arange(8)] = target.astype("<i8").view(np.uint8).reshape(-1, 8)
        return
    if arch != "aarch64" or (kind not in _ARM_PAGE_OFFSETS and kind not in (275, 282, 283)):
        raise CompileError(f"library: relocation {kind} of {arch} is not known")
    words = memory[at[:, None] + np.arange(4)].copy().view("<u4").ravel()
    if kind in (282, 283):  # b, bl
        words |= (_signed((target - where) >> 2, 26) & 0x3FFFFFF).astype(np.uint32)
    elif kind == 275:  # adrp
        pages = _signed((target >> 12) - (where >> 12), 21)
        words |= ((pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5).astype(np.uint32)
    else:  # the place in a page: add, ldr, str
        words |= ((target & 0xFFF) >> _ARM_PAGE_OFFSETS[kind] << 10).astype(np.uint32)
    _put(memory, at, words)


_ARM_PAGE_OFFSETS = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}  # relocation -> how far the offset is shifted right


def _put(memory: Array, at: Array, words: Array) -> None:
    memory[at[:, None] + np.arange(4)] = words.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :4]


def _signed(values: Array, bits: int) -> Array:
    if len(values) and (values.min() < -(1 << (bits - 1)) or values.max() >= 1 << (bits - 1)):
        raise CompileError(f"library: a target is {np.abs(values).max()} away, {bits} bits do not reach it")
    return values
