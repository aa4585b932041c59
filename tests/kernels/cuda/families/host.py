"""Functions that are emitted for a GPU and use nothing of it, compiled for this machine so that a test can call them."""

import ctypes

import llvmlite.binding as llvm

from kernels.native.emit.builder import Module
from kernels.native.emit.types import I64, PTR
from kernels.native.target.isa import ISAS


def build(emit):
    """Compile what `emit` emits of two addresses and two integers. Returns a function of them."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = Module(ISAS["sse"])
    with module.function("f", {"a": PTR, "b": PTR, "m": I64, "n": I64}) as (k, *arguments):
        emit(k, *arguments)
    text = "\n".join(line for line in module.text.splitlines() if not line.startswith(("target triple", "attributes")))
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(text.replace(" #0 {", " {")), machine)
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    function = kind(engine.get_function_address("f"))

    def call(a, b, m, n, engine=engine):  # the code is there while the engine is
        function(a, b, m, n)

    return call
