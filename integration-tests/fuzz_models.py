"""Fuzz the backends with random networks: `nox -s fuzz-models`. See `fuzz/command.py`."""

from fuzz.command import main

if __name__ == "__main__":
    main()
