"""The one loop that trains a stage; it knows no family and reads no config file.

`loop` is the sentence; its words are `order` (which samples, when), `gradients`, `schedule`, `validation`,
`saving`, `interruption` and `ranks`.
"""
