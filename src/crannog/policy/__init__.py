"""The RPC policy: which VM may call which service where. Pure code: text in, values out; no I/O, clock or threads."""
