"""The benchmarks and their harness. A benchmark is a module here with a function `measure(runs) -> list[Row]`."""
