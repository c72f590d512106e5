"""Kernels for processors, written for TVM: under every backend whose files hold machine code of this machine's kind."""
