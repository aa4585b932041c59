"""Write `app/rpc/descriptor.py` from `app/rpc/inference.proto`, by the protocol compiler of grpcio-tools: `make proto`."""

from __future__ import annotations

import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "app" / "rpc"
SOURCE, TARGET = FOLDER / "inference.proto", FOLDER / "descriptor.py"
LINE = 96  # characters of the text, without quotes


def generated() -> str:
    """Return the text of `app/rpc/descriptor.py`. Raises RuntimeError where the compiler refuses the source; stderr says why."""
    from grpc_tools import protoc  # noqa: PLC0415  the other generated pages need no compiler

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "descriptor")
        if protoc.main(["protoc", f"--proto_path={SOURCE.parent}", f"--descriptor_set_out={out}", SOURCE.name]):
            raise RuntimeError(f"{SOURCE.name}: protoc refuses it")
        text = out.read_bytes().hex()
    lines = "\n".join(f'    "{text[at : at + LINE]}"' for at in range(0, len(text), LINE))
    return (
        '"""What the protocol compiler makes of `inference.proto`. Written by `make proto`; do not edit."""\n\n'
        f"DESCRIPTOR = bytes.fromhex(\n{lines}\n)\n"
    )


if __name__ == "__main__":
    TARGET.write_text(generated(), encoding="utf-8")
