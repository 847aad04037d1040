"""A job as a PyTorchJob on a cluster.

render      a job as one plain mapping; pure
follow      started or adopted, followed to its end, cancelled
explain     why a job does not run, or how it ended, in words; pure
inspect     jobs of a namespace, listed and compared by hand
"""
