"""The Admin API: framing without I/O, the table of methods, and the server."""
