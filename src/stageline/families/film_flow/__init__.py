"""film_flow: thin structures in pictures by flow matching, with FiLM from a frozen vision-language model.

Noise is carried to the mask of an image by a learned flow (arXiv:2210.02747); a frozen encoder describes the image or
takes a prompt, and its vector modulates selected decoder stages of the U-Net (FiLM, arXiv:1709.07871); a gate may turn
that down around junctions. Binary masks, one class.

    prepare ──> backbone ──────────────> film ─────────────> evaluate ──> report
                U-Net (and junction      FiLM heads start      FiLM on, off and
                head), FiLM off          at the identity,      shuffled side by side
                                         everything trains

Torch-free: config, model_section, sections, rules, seed_keys, presets, inheritance, film_plan. Imported here: nothing.
"""
