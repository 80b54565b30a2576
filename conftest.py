"""Settings for the tests of every package that no ini file can hold."""

from contextlib import suppress

with suppress(ImportError):  # some environments have no hypothesis
    from hypothesis import settings

    # A slow machine is not a failure: no test asserts a time.
    settings.register_profile("qspec", settings(), deadline=None)
    settings.load_profile("qspec")
