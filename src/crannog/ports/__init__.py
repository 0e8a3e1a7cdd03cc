"""What the core may ask of the world, as Protocols, with the values that cross each border."""
