"""Weights of others: what they are called, where they lie, their digest, their lock and copy below the root.

    external    the record `External`, and the digest of files             no torch
    sources     a folder, a file or a hub id in the local hub cache -> files that were looked at
    lock        `cache/externals/lock.json`: which digest a source had when it was prepared
    copies      `cache/externals/<digest>/`, and `external_folder`: a verified local folder for families
    frozen      frozen models of transformers from such a folder, and tensors of single files      torch

`prepare` locks and copies; plan and decisions read the lock alone; families read folders.
"""
