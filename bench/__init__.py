"""Measurements of Hanse beside its peers: same work, same threads, alternating runs, medians and ratios.

    python -m bench                  all that this machine can run
    python -m bench step generate    some of them

One JSON line per measure on standard output; `docs/results.md` keeps dated results with their hardware.
"""
