"""A trained run and held-out records become one result, and the result a table, JSON or a page.

In: a run, records, perhaps a judge. Out: the mapping of `eval --json`, and text. Figures and their
presentation may be changed here; nothing is trained and no file of a run is changed.
"""
