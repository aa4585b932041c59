"""This machine and its database: what the public API plans with when nothing else is said."""

from __future__ import annotations

from profiler.device.profile import FULL_S, DeviceProfile, Progress, fingerprint_of, probe
from profiler.device.topology import read_confinement, read_hardware
from scheduler.errors import NotFoundError
from scheduler.exclusive import measuring
from scheduler.store import Store


def local_fingerprint() -> str:
    """The fingerprint of this machine, read without measuring."""
    return fingerprint_of(read_hardware())


def local_device(store: Store, seconds: float, *, again: bool = False, progress: Progress | None = None) -> DeviceProfile:
    """This machine's profile from the store, with what the process may use of it now.

    It is measured for about `seconds` and stored when it is new, when the one stored does not cover what may be used
    (`DeviceProfile.outdated`), or when it is asked for again.
    """
    if not again and (stored := _stored(store)) is not None:
        now = read_confinement()
        if not stored.outdated(now):
            return stored.model_copy(update={"confinement": now})
    with measuring(None if progress is None else lambda why: progress(0, 1, why)):
        measured = probe(seconds, progress)
    store.devices.save(measured)
    return measured


def _stored(store: Store) -> DeviceProfile | None:
    try:
        return DeviceProfile.from_json(store.devices.get(local_fingerprint()).profile)
    except NotFoundError:
        return None


def device(seconds: float = FULL_S, *, again: bool = False) -> DeviceProfile:
    """This machine's measured profile, from the default database; measured now when it is not there, or asked for again."""
    with Store() as store:
        return local_device(store, seconds, again=again)
