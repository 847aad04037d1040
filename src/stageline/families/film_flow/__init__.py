"""film_flow: thin structures in pictures by flow matching, with FiLM from a frozen vision-language model.

Noise is carried to the mask of an image by a learned flow (arXiv:2210.02747); a frozen encoder describes the image or
takes a prompt, and its vector modulates selected decoder stages of the U-Net (FiLM, arXiv:1709.07871); a gate may turn
that down around junctions. Binary masks, one class.

    prepare ──> backbone ──────────────> film ─────────────> evaluate ──> report
                U-Net (and junction      FiLM heads start      FiLM on, off and
                head), FiLM off          at the identity,      shuffled side by side
                                         everything trains

config       keys, stages, presets, published spellings, the FiLM plan      no torch, like facts, inheritance, words
data         pictures and trees, their splits, augmentation, windows
conditions   what describes an image or a prompt: encoders, their features, the questionnaire
model        the network; `task` trains it, `losses` and `sampling` are its objective and its way to a mask
measures     metrics, modes, pictures of an evaluation; `evaluate`, `predict`
imports      checkpoints of other programs
"""
