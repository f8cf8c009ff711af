"""A private cluster of real processes on this machine, and faults that are done to a job on it: `edl drill --local`.

The end-to-end tests and scripts/measure.sh use the same cluster and the same measurements. Nothing here is imported by
the processes of a cluster, but job.py, which is the job.
"""
