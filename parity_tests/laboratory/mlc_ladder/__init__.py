"""The Android library proven rung by rung, without a phone: see docs/targets/android.md.

1. quantiser   our weight writer against MLC's own converter, byte for byte
2. host        the x86-64 build against PyTorch holding the same dequantised weights
3. opencl      the kernels scheduled for Android, run on PoCL, against the x86-64 build
4. clang       the shipped float16 OpenCL source compiled
5. aarch64     the system library under qemu-user, through the phone's loading path, against the x86-64 build
6. arm64_host  the library that an export on an arm64 machine makes for it, under qemu-user, loaded as on any machine
7. structure   both tars: object formats, machines, marker symbol, undefined symbols
"""
