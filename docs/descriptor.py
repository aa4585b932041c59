"""Write `app/rpc/descriptor.py` from the `.proto` files beside it, by the protocol compiler of grpcio-tools: `make proto`."""

from __future__ import annotations

import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "app" / "rpc"
TARGET = FOLDER / "descriptor.py"
LINE = 96  # characters of the text, without quotes


def generated() -> str:
    """Return the text of `app/rpc/descriptor.py`. Raises RuntimeError where the compiler refuses a source; stderr says why."""
    from grpc_tools import protoc  # noqa: PLC0415  the other generated pages need no compiler

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "descriptor")
        sources = sorted(path.name for path in FOLDER.glob("*.proto"))
        if protoc.main(["protoc", f"--proto_path={FOLDER}", f"--descriptor_set_out={out}", *sources]):
            raise RuntimeError(f"{', '.join(sources)}: protoc refuses one of them")
        text = out.read_bytes().hex()
    lines = "\n".join(f'    "{text[at : at + LINE]}"' for at in range(0, len(text), LINE))
    return (
        '"""What the protocol compiler makes of the `.proto` files beside it. Written by `make proto`; do not edit."""\n\n'
        f"DESCRIPTOR = bytes.fromhex(\n{lines}\n)\n"
    )


if __name__ == "__main__":
    TARGET.write_text(generated(), encoding="utf-8")
