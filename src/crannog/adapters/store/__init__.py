"""The store: qubes.xml on disk."""
