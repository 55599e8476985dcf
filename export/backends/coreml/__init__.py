"""Core ML, the runtime of Apple's systems; run here by an interpreter."""

KIND = "coreml"
