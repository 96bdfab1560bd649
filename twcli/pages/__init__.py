"""How every page looks: one base template, its styles, its charts and its one script.

In: plain values. Out: one file of HTML that needs no network. Colours, layout and the shapes of
charts may be changed here; what is said on a page is decided by who renders it.
"""
