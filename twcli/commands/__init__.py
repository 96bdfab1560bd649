"""One file a command that is no training and no evaluation: a config goes in, a
result or a file comes out.

In: a config, and functions that are told of progress. Out: a file that was published whole, or a
mapping. What a command does in which order may be changed here; nothing here prints.
"""
