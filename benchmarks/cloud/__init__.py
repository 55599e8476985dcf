"""The gateway under load: throughput beside the bare engine's, latency, faults and endurance."""
