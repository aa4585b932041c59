"""A kernel that tests launch, and a program whose kernel faults, so that it loses its GPU."""

SCALE = """target triple = "nvptx64-nvidia-cuda"
declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
declare i32 @llvm.nvvm.read.ptx.sreg.ntid.x()
define ptx_kernel void @scale(ptr addrspace(1) %x, i32 %n, float %by) {
  %tid = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
  %block = call i32 @llvm.nvvm.read.ptx.sreg.ctaid.x()
  %threads = call i32 @llvm.nvvm.read.ptx.sreg.ntid.x()
  %start = mul i32 %block, %threads
  %i = add i32 %start, %tid
  %in = icmp ult i32 %i, %n
  br i1 %in, label %body, label %out
body:
  %p = getelementptr float, ptr addrspace(1) %x, i32 %i
  %v = load float, ptr addrspace(1) %p
  %w = fmul float %v, %by
  store float %w, ptr addrspace(1) %p
  br label %out
out:
  ret void
}
"""

MISPLACED = """
import ctypes
from kernels.cuda.driver import Driver
from kernels.cuda.errors import GpuLostError
from kernels.cuda.ptx import find_target, generate
device = Driver().device()
context = device.open()
stream, module = context.stream(), context.load(generate(SCALE, find_target(device.capability)))
stream.launch(module.function("scale"), (ctypes.c_uint64(64), ctypes.c_int32(1), ctypes.c_float(1)), blocks=1, threads=32)
for _ in range(2):
    try:
        stream.synchronize()
    except GpuLostError as error:
        print("lost", type(error).__name__, error)
context.close()
"""
