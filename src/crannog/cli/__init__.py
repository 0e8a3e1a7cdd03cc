"""The tools. Each is one file, imports the standard library only, and speaks to the daemon through the client."""
