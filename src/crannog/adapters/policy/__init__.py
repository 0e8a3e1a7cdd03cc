"""Policy files on this host's disk."""
