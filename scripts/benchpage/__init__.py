"""docs/performance.md: what the benchmarks have found on one machine, as tables and plots."""
