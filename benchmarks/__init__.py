"""Ratios against what a user would pick instead, side by side in one run: a file and a command for each subject.

`python -m benchmarks.NAME` measures and prints a table; `measure()` of each file gives the figures by name. What is
only compared with is installed into a virtual environment of its own (`benchmarks.venv`), never as a dependency.
"""
