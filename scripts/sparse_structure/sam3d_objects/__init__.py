"""stageline under the guides' module paths, for code that runs in this folder; elsewhere see `names.install`."""
