"""The driver of a job: forms the world of each generation and relays its rendezvous."""
