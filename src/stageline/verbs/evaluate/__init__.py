"""The verb evaluate: checkpoints through admission, the family's metrics, written once per checkpoint, mode and data.

evaluation   making one, or finding it made
baselines    scores of the family's trivial methods beside it
rows         its rows as they come, so that a killed one continues

Where evaluations lie and what they say is `stageline.work.evaluations`, which loads no torch.
"""
