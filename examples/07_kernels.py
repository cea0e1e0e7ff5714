"""The Triton kernels that a layer would run on a GPU, and what the compiler makes of them. No GPU is needed.

python examples/07_kernels.py
"""

import noble_fx

kernels = noble_fx.kernels("cosnet", in_features=1024, out_features=4096, rank=64)
print(kernels)  # each kernel with its tiles, FLOPs and bytes

source = kernels.sources["linear_up_forward"]
print(f"linear_up_forward has {len(source.splitlines())} lines of Triton")

resources = kernels.only("linear_up_forward").compile("sm_90")["linear_up_forward"]
print(f"on sm_90: {resources.registers} registers, {resources.local_bytes} bytes spilled a thread")
print(f"{resources.count('HGMMA')} instructions on tensor cores")
