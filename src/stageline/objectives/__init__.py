"""What is minimised, and the words for it. Conventions, said once:

t in [0, 1], 0 is noise, 1 is data; x_t = (1 - t) x_0 + t x_1; velocity = x_1 - x_0. Images are (B, C, H, W) in [-1, 1].
Code with another habit (diffusion steps) converts at its own border. Randomness comes in as a `torch.Generator`.
"""
