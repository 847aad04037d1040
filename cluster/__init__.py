"""A Kubernetes cluster of two nodes on one machine, for the tests: real parts, pinned, in its own namespaces.

Run as `python -m cluster up | down | status | env | enter | recycle-volumes` (see `make cluster`). All it builds, keeps
and writes lies in one state directory (`cluster.state`); what runs can be found again by its records there and by a
mark in its environment, so that a killed `up` leaves nothing that the next `up` or `down` can't clear away.

    stageline-1  10.89.0.2   API server, etcd, controllers, registry (:5000), S3 (:7070), and node-1
    stageline-2  10.89.0.3   node-2

Neither namespace has a way out. Tests run their clients inside stageline-1. The modules are nouns: `machine` says what
this machine lacks, `parts` builds the pinned programs, `images` and `base` make images, `network`, `cgroups`,
`certificates`, `control_plane`, `node`, `registry`, `s3`, `storage` and `addons` are what their names say, and
`lifecycle` calls them in order.
"""
