"""ExecuTorch with XNNPACK, the runtime of Android and iOS."""

KIND = "executorch"
