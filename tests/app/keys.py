"""Make API keys and the headers that send them."""

from app.access import auth
from scheduler.store import Store


def make_key(db: str, *scopes: str, expires_us: int | None = None, rate_per_s: float | None = None) -> str:
    text, prefix, digest = auth.new_key()
    with Store(db) as store:
        store.keys.add(prefix, "test", digest, scopes, expires_us, rate_per_s)
    return text


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
