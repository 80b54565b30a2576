"""What every package's tests need and no ini file can state."""

from contextlib import suppress

with suppress(ImportError):  # some environments hold no hypothesis
    from hypothesis import settings

    # A slow machine is no failure: no test of ours asserts a time.
    settings.register_profile("qspec", settings(), deadline=None)
    settings.load_profile("qspec")
