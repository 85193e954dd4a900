"""Measurements on real models; run by hand, never by the test suite (machines differ, ratios count)."""
