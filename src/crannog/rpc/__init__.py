"""RPC with guests: frames, and the process of each VM that alone reads what its guest sends."""
