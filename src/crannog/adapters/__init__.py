"""The real world behind the ports. Each adapter knows the ports and the core's values, never another adapter."""
