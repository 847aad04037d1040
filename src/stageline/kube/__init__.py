"""The one door to a Kubernetes API server: client, responses, refusals in words, watches, where a log was read to."""
