"""The page that a JobServer shows: HTML, CSS and JavaScript, served as they are. [pure]

Invariant: nothing is fetched from anywhere but the JobServer, and nothing that the cluster says becomes markup.
"""
