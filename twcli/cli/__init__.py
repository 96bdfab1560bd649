"""The command line: options become a config, a config becomes one call, a result becomes text.

In: `sys.argv`. Out: standard output, standard error and an exit code. How the commands look and
what they say may be changed here; nothing else in the package prints.
"""
