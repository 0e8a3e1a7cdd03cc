"""The graphical session of a guest: it runs in guests, and imports nothing of the package."""
