"""API keys and the audit log, on both databases."""

import pytest

from scheduler.errors import ConflictError, NotFoundError
from scheduler.store import AuditEntry, Store


def test_keys_are_kept_and_revoked(store: Store) -> None:
    assert store.keys.ring().made is False
    store.keys.add("aa", "first\0", "0" * 64, {"read", "infer"}, None, 2.5)
    store.keys.add("bb", "second", "1" * 64, {"admin"}, 10**15, None)
    first, second = store.keys.ring().usable
    assert (first.prefix, first.scopes, first.rate_per_s, first.last_used_us) == ("aa", ("infer", "read"), 2.5, None)
    assert (second.active(10**15 - 1), second.active(10**15)) == (True, False)
    store.keys.touch({"aa": 5, "gone": 6})
    assert store.keys.ring().usable[0].last_used_us == 5
    store.keys.revoke("aa")
    store.keys.revoke("aa")
    ring = store.keys.ring()
    assert ([key.prefix for key in ring.usable], ring.made) == (["bb"], True)
    assert [key.revoked_us is None for key in store.keys.page().items] == [True, False]
    store.keys.revoke("bb")
    assert (store.keys.ring().usable, store.keys.ring().made) == ((), True)


def test_a_prefix_is_taken_once(store: Store) -> None:
    store.keys.add("aa", "first", "0" * 64, {"read"}, None, None)
    with pytest.raises(ConflictError, match="taken"):
        store.keys.add("aa", "second", "1" * 64, {"admin"}, None, None)
    assert store.keys.ring().usable[0].name == "first"
    with pytest.raises(NotFoundError):
        store.keys.revoke("zz")


def test_too_many_keys_are_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.store.keys.MAX_KEYS", 1)
    store.keys.add("aa", "first", "0" * 64, {"read"}, None, None)
    with pytest.raises(ConflictError, match="the limit"):
        store.keys.add("bb", "second", "1" * 64, {"read"}, None, None)


def test_audit_log_is_paged(store: Store) -> None:
    store.audit.add([])
    store.audit.add(AuditEntry(n, "cli", "act", f"target {n}", f"r{n}") for n in range(5))
    page = store.audit.page(limit=2)
    assert [entry.at_us for entry in page.items] == [4, 3]
    assert [entry.target for entry in store.audit.page(cursor=page.next).items] == ["target 2", "target 1", "target 0"]
