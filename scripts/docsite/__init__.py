"""What mkdocs.yml needs of our own: pages from outside docs/, and the reference, made from the code when it is built.

It is a program's part, not a library: nothing installed imports it.
"""
