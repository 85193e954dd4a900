"""The tests of QI; `python -m tests` runs them and every other check."""
