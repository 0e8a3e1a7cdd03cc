"""The host's own devices, as its kernel shows them."""
