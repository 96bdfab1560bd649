"""One file a command: a config goes in, a result or a file comes out; `library.py` has them as
functions for a notebook.

In: a config, and functions that are called with progress. Out: a file that was published whole, or
a mapping. What a command does in which order may be changed here; nothing here prints.
"""
