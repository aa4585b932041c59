"""The garbage collector does not visit imported objects again, so that it makes no long pauses."""

import gc

from app.engine.memory import settle


def test_collections_leave_out_what_was_settled() -> None:
    before = len(gc.get_objects())
    settle()
    try:
        assert gc.get_freeze_count() > before // 2
        assert len(gc.get_objects()) < before // 2
    finally:
        gc.unfreeze()
