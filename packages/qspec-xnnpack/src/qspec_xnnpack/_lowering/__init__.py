"""From converted graphs to programs that ExecuTorch runs. `_flow` is the whole; rows use the other files."""
