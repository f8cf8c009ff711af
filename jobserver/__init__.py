"""The JobServer: decides which slots each job has; runs nothing itself."""
