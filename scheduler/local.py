"""This machine: its profile from a database, measured when it is new, or estimated where nothing may be opened or measured."""

from __future__ import annotations

import functools
from typing import Final

from kernels.native.target.isa import host_isas
from profiler.device.profile import FULL_S, DeviceProfile, Progress, fingerprint_of, probe, usable_cores
from profiler.device.quiet import await_quiet, refused, require_quiet
from profiler.device.sheet import Sheet, SheetBandwidth, SheetCache, SheetPeak, from_sheet
from profiler.device.topology import read_confinement, read_hardware
from scheduler.errors import NotFoundError
from scheduler.exclusive import measuring
from scheduler.store import Store

CLOCK_HZ: Final = 2.5e9  # assumed of a machine that was not measured
SCALAR_FLOPS_PER_CYCLE: Final = 4  # of a core whose vector instructions are not described
ROUGH_S: Final = 1.0  # for which a machine is measured that stays busy
DRAM_BYTES_PER_S: Final = 1e10  # assumed of all its cores together

_known: dict[str, DeviceProfile] = {}  # by fingerprint: what this process read from a database or measured last


def local_fingerprint() -> str:
    """Return the fingerprint of this machine, read without measuring."""
    return fingerprint_of(read_hardware())


def local_device(store: Store, seconds: float, *, again: bool = False, progress: Progress | None = None) -> DeviceProfile:
    """Return this machine's profile from the store, with what the process may use of it now.

    It is measured for about `seconds` and stored when it is new, when the one stored does not cover what may be used
    (`DeviceProfile.outdated`), or when `again` asks for it. Where other work keeps the machine busy, half of that time is spent
    on waiting for it to end. A profile that is needed is then measured roughly and stored; it says that the machine was busy, and
    is measured again once the machine is quiet.

    Raises: MachineBusyError where `again` asked for it and the machine was busy; the stored one stays.
    """
    found = None if again else _stored(store)
    if found is None:
        with measuring(None if progress is None else lambda why: progress(0, 1, why)):
            busy = await_quiet(usable_cores(read_hardware(), read_confinement()), seconds / 2)
            if again:
                require_quiet("device", busy)
            found = probe(min(seconds, ROUGH_S) if refused(busy) else seconds, progress)
        if again:
            require_quiet("device", found.stability.quietness)
        store.devices.save(found)
    _known[found.fingerprint] = found
    return found


def _stored(store: Store) -> DeviceProfile | None:
    """Return the stored profile of this machine, where it holds."""
    try:
        stored = DeviceProfile.from_json(store.devices.get(local_fingerprint()).profile)
    except NotFoundError:
        return None
    now = read_confinement()
    if stored.outdated(now) or (refused(stored.stability.quietness) and not refused(await_quiet(stored.usable_cores, 0))):
        return None
    return stored.model_copy(update={"confinement": now})


def device(seconds: float = FULL_S, *, again: bool = False) -> DeviceProfile:
    """Return what this machine was measured to do: peak rates, bandwidths and overheads, from the default database.

    That is the one in EDGEWISE_DB, else the one in the user's data directory.

    Args:   seconds: about how long to measure where the database does not know this machine. again: measure in any case.
    Raises: StoreError for a database that cannot be used.
    """
    with Store() as store:
        return local_device(store, seconds, again=again)


def device_at_hand() -> DeviceProfile:
    """Return this machine's profile without opening a database and without measuring.

    It is the one that this process read or measured last (`local_device`); before that an estimate from the description of the
    machine (instruction set, cores, caches), in which no figure says that it was measured.
    """
    fingerprint = local_fingerprint()
    return _known.get(fingerprint) or _estimated(fingerprint)


@functools.cache
def _estimated(fingerprint: str) -> DeviceProfile:
    hardware = read_hardware()
    isas = host_isas()
    flops_per_s = CLOCK_HZ * (isas[-1].flops_per_cycle if isas else SCALAR_FLOPS_PER_CYCLE)
    sheet = Sheet(
        sheet_version=1,
        vendor=hardware.vendor or "unknown",
        model=hardware.model or "unknown",
        architecture=hardware.architecture or "unknown",
        physical_cores=hardware.physical_cores,
        logical_cores=hardware.logical_cores,
        memory_bytes=hardware.memory_bytes,
        caches=tuple(
            SheetCache(level=cache.level, kind=cache.kind, nbytes=cache.nbytes, shared_by=cache.shared_by)
            for cache in hardware.caches
        ),
        peaks=(SheetPeak(threads=1, ops_per_s=flops_per_s),),
        bandwidths=(SheetBandwidth(threads=1, bytes_per_s=DRAM_BYTES_PER_S),),
        method=f"estimated from the instruction set at {CLOCK_HZ / 1e9:g} GHz, not measured",
    )
    return from_sheet(sheet).model_copy(update={"hardware": hardware, "confinement": read_confinement()})
