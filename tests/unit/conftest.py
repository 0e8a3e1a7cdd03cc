"""What all unit tests have: no example of hypothesis fails because the machine was busy just then."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
