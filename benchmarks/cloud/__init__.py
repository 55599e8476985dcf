"""Load benchmark of the gateway: throughput, latency, CPU time, faults and endurance."""
