"""Scripts that peers of QI are measured with, each run by the interpreter of its own environment."""
